"""What a request body says: the model, whether it streams, what it may cost, and whether it may."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fastgw.errors import BadBody, ModelNotAllowed
from fastgw.model import Usage
from fastgw.reservation import Reservation
from fastgw.usage.brief import MISSING, UNREADABLE, read_asked
from fastgw.usage.estimate import BYTES_PER_TOKEN
from fastgw.usage.prompt import prompt_tokens
from fastgw.usage.request import (
    asking_usage,
    output_limit,
    read_form,
    read_json,
    refuse_unmeterable,
    without_usage,
)

if TYPE_CHECKING:
    from fastgw.http1.request import RequestHead
    from fastgw.plan import Plan

KEEP_PROMPT: Final = 16 * 1024
"""A body up to this size is kept for a count of the prompt that is rarely needed; a larger one
where there is room for it."""


Inspected = tuple[bytes, str, bool, bool, int, Reservation | None, bool]
"""(body to send on, model, streams, injected, prompt, reservation, told). `injected`: usage was
asked for by us, so its extra event must be taken out. `prompt`: input tokens, -1 if they were not
counted. `reservation` where a budget has a hard cap. `told`: the client wants the usage of its
stream, as far as a budget that cuts it has to know."""


def inspect(
    plan: Plan, request: RequestHead, body: bytes, plain: bool, counts: bool = False
) -> Inspected:
    """Read a whole body. `plain`: try it as what most are (`plan.plain`, and it is not HUGE).
    `counts`: the prompt is counted whatever the plan says. Raises a Refusal."""
    if plain:
        # What most requests are, in a third of the steps.
        try:
            said = read_asked(body)
        except UNREADABLE:
            pass
        else:
            asked = said.model
            if type(asked) is str and asked.isascii():
                if said.stream is not True:
                    return body, asked, False, False, -1, None, False
                if said.stream_options is MISSING:
                    usage = plan.asks_usage
                    if usage is None or not usage.on or asked in usage.without:
                        return body, asked, True, False, -1, None, False
                    return asking_usage(body), asked, True, True, -1, None, False
    model, streams, injected, prompt, reservation = "", False, False, -1, None
    told = False
    settings = plan.pool.settings
    if plan.operation:
        asks = plan.asks_usage
        body, message, model, streams, injected = read_json(
            body,
            asks is not None and asks.on,
            plan.exact,
            settings.model,
            settings.model_aliases,
            plan.named,
            plan.streams,
            plan.clamps,
            without=asks.without if asks is not None else (),
        )
        if plan.metered and plan.key.rules:
            refuse_unmeterable(plan.operation, message)
        if counts or plan.reserves:
            prompt = prompt_tokens(plan.api.prompt(message), plan.named)
        if plan.reserves:
            output = output_limit(plan.api, plan.operation, message, -1)
            bounded = output >= 0
            if not bounded:
                output *= -settings.default_max_tokens
            reservation = Reservation(
                Usage(prompt, output), plan.api, plan.operation, message if plan.clamps else None
            )
            reservation.bounded = bounded
        if plan.cuts and streams and not injected:
            options = message.get("stream_options")
            told = isinstance(options, dict) and options.get("include_usage") is True
    else:
        # Known by no operation, but the key or route is limited to models, or they are replaced.
        kind = request.get(b"content-type") or b""
        try:
            if plan.named:
                model = plan.named
            elif kind.startswith(b"multipart/form-data"):
                body, model = read_form(body, kind, settings.model, settings.model_aliases)
                prompt = 1  # as any that is no JSON
            elif body:  # SDKs cancel by an empty one
                body, _, model, _, _ = read_json(
                    body, False, plan.exact, settings.model, settings.model_aliases, adds=False
                )
        except BadBody:
            # Where models are only replaced, what names none goes on as it came.
            if plan.exact or (settings.model and b"model" in body.lower()):
                raise
        if plan.reserves:
            reservation = unread(plan, len(body))
    if plan.strict and not plan.allows_model(model):
        refusal = ModelNotAllowed(
            f"model '{model[:100]}' is not allowed for this key or route"
            if model
            else "this key or route is limited to models, and the request names none"
        )
        refusal.model = model
        raise refusal
    return body, model, streams, injected, prompt, reservation, told


def unread(plan: Plan, size: int) -> Reservation:
    """The reservation for a body that is not looked at, of `size` bytes as far as is known."""
    prompt = max(0, size) // BYTES_PER_TOKEN
    estimate = Usage(prompt, plan.pool.settings.default_max_tokens)
    return Reservation(estimate, plan.api, "", None)


REJECTED: Final = frozenset({400, 422})
"""Statuses of a provider that does not know an option."""
_OPTION: Final = b"stream_options"


def unless_rejected(answer: bytes) -> bytes | None:
    """The provider's error, None where it is about the option that asks for usage."""
    return None if _OPTION in answer else answer


def without_asking(plan: Plan, body: bytes, answer: bytes) -> bytes | None:
    """The body to send again after `answer`, an error that names the option that we added; None if
    it is about something else. An error may repeat what the client wrote, so it proves nothing
    before the request without the option fares better."""
    if plan.asks_usage is None or _OPTION not in answer:
        return None
    return without_usage(body)
