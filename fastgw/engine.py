"""What all exchanges of a worker share, and the first step of each: the connection's handler."""

from __future__ import annotations

import itertools
import re
import secrets
from typing import TYPE_CHECKING

from fastgw.downstream.connection import Handler
from fastgw.drains import Drains
from fastgw.errors import StoreClosed, render
from fastgw.exchange import Exchange
from fastgw.http1.serialize import field, own_answer
from fastgw.model import Usage
from fastgw.policy.cors import Cors
from fastgw.usage.estimate import ByteCounter
from fastgw.usage.meter import Metered
from fastgw.usage.payload import read_object
from fastgw.usage.prompt import counted, prompt_tokens

if TYPE_CHECKING:
    from fastgw.config.tables import Config
    from fastgw.downstream.connection import DownstreamConnection
    from fastgw.errors import Refusal
    from fastgw.http1.request import RequestHead
    from fastgw.plan import Plan, Planner
    from fastgw.policy.ledger import Ledger
    from fastgw.recorder import Recorder
    from fastgw.settlement import Settlement


KEPT = 8
"""Of the memory for request bodies one part in so many may be kept, 64 MiB by default."""

_OBJECT = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*\{")


class Engine(Handler):
    """See the module. `planner` is replaced as a whole when the configuration changes."""

    def __init__(
        self,
        config: Config,
        planner: Planner,
        ledger: Ledger,
        settlement: Settlement,
        recorder: Recorder,
    ) -> None:
        self.use(config, planner)
        self.ledger = ledger
        self.settlement = settlement
        self.recorder = recorder
        self.on_failure = config.store.on_failure
        self.held = 0
        """Bytes of request bodies in memory, of all exchanges: of those that wait, and `kept`."""
        self.kept = 0
        """Bytes of large bodies that stay until their answers are over."""
        self.drains = Drains()
        self._ids = itertools.count(10_000_000)
        self._id_prefix = b"req_" + secrets.token_hex(6).encode()

    def use(self, config: Config, planner: Planner) -> None:
        """Serve new requests by this configuration."""
        self.planner = planner
        self.buffer_size = config.server.buffer_size
        self.cors = Cors(config.server.cors_origins)
        self.max_held = config.server.max_body_memory
        self.max_kept = self.max_held // KEPT

    # called by client connections

    def begin(self, connection: DownstreamConnection, head: RequestHead, length: int) -> Exchange:
        """A request head is here."""
        exchange = Exchange(self, connection, head, length)
        exchange.start()
        return exchange

    def reject(
        self, connection: DownstreamConnection, head: RequestHead, length: int, refusal: Refusal
    ) -> None:
        """A request whose body will not be read."""
        Exchange(self, connection, head, length).reject(refusal)

    def refuse(self, connection: DownstreamConnection, refusal: Refusal) -> None:
        """Bytes that are no request: answer and record."""
        request_id = self.new_id()
        connection.write(self.refusal(refusal, request_id, closing=True))
        self.recorder.refused(connection, refusal, request_id)

    # called by exchanges

    def new_id(self) -> bytes:
        """A request id, unique over workers and boots."""
        return b"%b%d" % (self._id_prefix, next(self._ids))

    def may_go_on(self) -> None:
        """The store is away. Raises StoreClosed unless `on_failure` says to go on."""
        if self.on_failure == "closed":
            raise StoreClosed("budgets cannot be checked now; try again", (("retry-after", "1"),))

    def refusal(
        self,
        refusal: Refusal,
        request_id: bytes,
        *,
        closing: bool,
        head_only: bool = False,
        fields: bytes = b"",
        request: RequestHead | None = None,
    ) -> bytes:
        """The whole answer that a refusal is, in the dialect of its route. `fields`: more header
        lines, each with CRLF."""
        lines = (field(name, value) for name, value in refusal.headers)
        return own_answer(
            refusal.status,
            request_id,
            b"content-type: application/json\r\n" + fields + b"".join(lines),
            render(refusal, self.planner.shape(request), request_id.decode()),
            closing,
            head_only,
        )

    def count_prompt(self, body: bytes, plan: Plan | None) -> int:
        """Input tokens of a request body, counted."""
        message = read_object(body) if _OBJECT.match(body) is not None else None
        if message is None or plan is None:
            return prompt_tokens(message or {})
        return prompt_tokens(plan.api.prompt(message), plan.named)

    def rough_prompt(self, body: bytes, plan: Plan | None) -> int:
        """As `count_prompt`, by bytes: for what a report or the end will put right, no vocabulary
        is loaded."""
        message = read_object(body) if _OBJECT.match(body) is not None else None
        if message is None or plan is None:
            return 1
        return counted(plan.api.prompt(message), plan.named, ByteCounter())

    def prompt_only(self, tokens: int) -> Metered:
        """The cost of a prompt whose answer nobody waited for."""
        return Metered(Usage(tokens, source="counted"), "", False)
