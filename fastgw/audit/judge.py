"""Brings the two lines of an exchange together and judges them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastgw.audit.books import NOTHING, Cost
from fastgw.audit.findings import DIFFERS, NEVER_CHARGED, NO_PROVIDER, UNLOGGED

if TYPE_CHECKING:
    from fastgw.audit.books import Books
    from fastgw.audit.findings import Audit
    from fastgw.audit.logs import Asked, Charged


def most(asked: Asked) -> Cost:
    """The most that an exchange may cost, however it ended."""
    given, made = max(asked.prompt_counted), max(asked.text_counted)
    return Cost(max(asked.given, given), max(asked.made, made), 1)


def least(asked: Asked) -> Cost:
    """The least that an exchange costs of which nothing was reported and all arrived."""
    return Cost(min(asked.prompt_counted), min(asked.text_counted), 1)


def disagreement(asked: Asked, charged: Charged) -> str:
    """The kind of disagreement between two lines of one exchange, "" where there is none."""
    whole = charged.reason == "ok" and asked.whole and asked.status == 200
    if charged.source == "none":
        if asked.reported or (whole and charged.operation):
            return NEVER_CHARGED
        return ""
    if charged.source == "reported":
        same = (charged.given, charged.made) == (asked.given, asked.made)
        return "" if same else DIFFERS
    if asked.reported and whole:
        return DIFFERS
    if whole:
        same = charged.given in asked.prompt_counted and charged.made in asked.text_counted
    else:
        # A report that the gateway has seen, and text after it that it counted.
        given = (*asked.prompt_counted, asked.given)
        same = charged.given in given and charged.made <= most(asked).made
    return "" if same else DIFFERS


class Join:
    """Brings the two lines of an exchange together by its request id. An id may come back: lines
    that agree are one exchange, whatever their order."""

    def __init__(self, books: Books, audit: Audit) -> None:
        self._books = books
        self._audit = audit
        self._asked: dict[str, list[Asked]] = {}
        self._charged: dict[str, list[Charged]] = {}

    def ask(self, asked: Asked) -> None:
        """A line of the provider's log."""
        waiting = self._charged.get(asked.request_id, ())
        for at, charged in enumerate(waiting):
            if not disagreement(asked, charged):
                _take(self._charged, asked.request_id, at)
                self._pair(asked, charged)
                return
        self._asked.setdefault(asked.request_id, []).append(asked)

    def charge(self, charged: Charged) -> None:
        """A line of the access log."""
        if not self._books.metered(charged):
            # Nothing is charged here: whatever the provider reported of it is nobody's.
            charged = charged._replace(source="unmetered")
        waiting = self._asked.get(charged.request_id, ())
        for at, asked in enumerate(waiting):
            if charged.source == "unmetered" or not disagreement(asked, charged):
                _take(self._asked, charged.request_id, at)
                self._pair(asked, charged)
                return
        if not charged.sent and charged.source == "none":
            self._books.add(charged, charged.began, *_admitted(charged))
        else:
            self._charged.setdefault(charged.request_id, []).append(charged)

    def _pair(self, asked: Asked, charged: Charged) -> None:
        self._audit.compared += 1
        if charged.source == "unmetered":
            return
        kind = disagreement(asked, charged)
        cost, provider, more = _admitted(charged)
        cost = provider = Cost(charged.given, charged.made, cost.requests)
        if kind:
            self._audit.note(kind, asked, charged)
            right = (asked.given, asked.made) if asked.reported else least(asked)[:2]
            provider = Cost(*right, cost.requests)
        self._books.add(charged, min(charged.began, asked.began), provider, cost, more)

    def close(self) -> None:
        """Judge what is left over."""
        for request_id, several in self._charged.items():
            for charged in several:
                waiting = self._asked.get(request_id)
                if waiting:
                    self._pair(waiting.pop(0), charged)
                elif charged.source != "unmetered":
                    cost, provider, more = _admitted(charged)
                    cost = cost._replace(given=charged.given, made=charged.made)
                    if charged.given or charged.made:
                        self._audit.note(NO_PROVIDER, None, charged)
                    self._books.add(charged, charged.began, provider, cost, more)
        for remaining in self._asked.values():
            for asked in remaining:
                self._audit.note(UNLOGGED, asked, None)
                self._books.add_unlogged(asked, NOTHING, most(asked))


def _take(waiting: dict[str, list[Any]], request_id: str, at: int) -> None:
    several = waiting[request_id]
    del several[at]
    if not several:
        del waiting[request_id]


def _admitted(charged: Charged) -> tuple[Cost, Cost, Cost]:
    """What a line says of its admission, in requests: charged, by the provider (the same), and what
    may be charged besides. A budget of requests is debited as it lets one in."""
    if charged.sent or charged.reason in ("upstream_unavailable", "upstream_timeout"):
        sure, maybe = 1, 0
    else:
        sure, maybe = 0, int(charged.reason in ("client_disconnected", "overloaded"))
    return Cost(0, 0, sure), Cost(0, 0, sure), Cost(0, 0, maybe)
