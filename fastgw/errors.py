"""Every error a client can be answered with: one tree, and one table from there to responses.

A refusal carries what a caller can act on: the HTTP status, a stable `code`, the error `kind` that
the SDK of each dialect knows, and a sentence that says what, why and what to do. No message ever
holds a credential, an upstream's address or a path of this machine.
"""

from __future__ import annotations

from typing import ClassVar

import orjson


class FastgwError(Exception):
    """Root of everything fastgw raises on purpose."""


class ConfigError(FastgwError):
    """The configuration cannot be used; `problems` holds one line for each thing wrong."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class StoreUnavailable(FastgwError):
    """The store did not answer in time, or answered with an error. The call may be repeated."""


class Refusal(FastgwError):
    """An exchange that ends here. Subclasses fix status, code and kind."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    kind: ClassVar[str] = "server_error"
    closes: ClassVar[bool] = False
    """Whether the client's connection can no longer be trusted to be in step."""

    def __init__(self, message: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.headers = headers


class BadRequest(Refusal):
    """What arrived is not one unambiguous HTTP/1.1 request (RFC 9112)."""

    status, code, kind, closes = 400, "malformed_request", "invalid_request_error", True


class BadPath(Refusal):
    """A path that two parsers could read differently."""

    status, code, kind = 400, "malformed_path", "invalid_request_error"


class BadBody(Refusal):
    """The message is sound, its JSON is not."""

    status, code, kind = 400, "invalid_json", "invalid_request_error"


class NotMeterable(Refusal):
    """Under a budget, an option whose cost no answer would tell."""

    status, code, kind = 400, "not_meterable", "invalid_request_error"


class RequestTimeout(Refusal):
    """The client was too slow with its head or body (RFC 9110, 15.5.9)."""

    status, code, kind, closes = 408, "request_timeout", "invalid_request_error", True


class BodyTooLarge(Refusal):
    """The body passes `[server] max_request_body`."""

    status, code, kind, closes = 413, "body_too_large", "invalid_request_error", True


class TargetTooLong(Refusal):
    """The request line passes `[server] max_request_line`."""

    status, code, kind, closes = 414, "target_too_long", "invalid_request_error", True


class UnsupportedEncoding(Refusal):
    """A compressed request body on a metered path: it cannot be read, so it is not sent on."""

    status, code, kind = 415, "unsupported_encoding", "invalid_request_error"


class ExpectationFailed(Refusal):
    """An Expect field other than 100-continue (RFC 9110, 10.1.1)."""

    status, code, kind, closes = 417, "expectation_failed", "invalid_request_error", True


class HeadTooLarge(Refusal):
    """The head passes `[server] max_head` or `max_header_fields`."""

    status, code, kind, closes = 431, "head_too_large", "invalid_request_error", True


class NotImplementedHere(Refusal):
    """A method or transfer coding that fastgw does not speak (RFC 9110, 15.6.2)."""

    status, code, kind, closes = 501, "not_implemented", "invalid_request_error", True


class VersionNotSupported(Refusal):
    """Neither HTTP/1.1 nor HTTP/1.0."""

    status, code, kind, closes = 505, "http_version_not_supported", "invalid_request_error", True


class MissingKey(Refusal):
    """No virtual key in any of the configured places."""

    status, code, kind = 401, "missing_api_key", "invalid_request_error"


class InvalidKey(Refusal):
    """A key that is unknown, disabled, expired or not yet valid: told apart in the log only."""

    status, code, kind = 401, "invalid_api_key", "invalid_request_error"


class MetadataMissing(Refusal):
    """A budget needs a metadata field that the key does not have (`on_missing = "deny"`)."""

    status, code, kind = 403, "metadata_missing", "invalid_request_error"


class ModelNotAllowed(Refusal):
    """The key (or the route) does not cover this model."""

    status, code, kind = 403, "model_not_allowed", "invalid_request_error"

    model = ""
    """The one that was asked for."""


class UnpricedModel(Refusal):
    """Under a budget in usd, a model that has no price (`[pricing] on_unpriced = "deny"`)."""

    status, code, kind = 403, "unpriced_model", "invalid_request_error"


class RouteNotFound(Refusal):
    """No route covers this path."""

    status, code, kind = 404, "route_not_found", "invalid_request_error"


class BudgetExceeded(Refusal):
    """A budget of this key is used up."""

    status, code, kind = 429, "budget_exceeded", "insufficient_quota"


class UpstreamUnavailable(Refusal):
    """The provider cannot be reached, or its answer is not one sound HTTP message."""

    status, code, kind = 502, "upstream_unavailable", "server_error"


class StoreClosed(Refusal):
    """The store is away and `[store] on_failure = "closed"`."""

    status, code, kind = 503, "store_unavailable", "server_error"


class Overloaded(Refusal):
    """A bound of this process or of the provider's pool is reached."""

    status, code, kind = 503, "overloaded", "server_error"


class UpstreamTimeout(Refusal):
    """The provider did not connect, or did not begin its answer, in time."""

    status, code, kind = 504, "upstream_timeout", "server_error"


_UPSTREAM_FAILURES: dict[str, tuple[type[Refusal], str]] = {
    "refused": (UpstreamUnavailable, "the provider cannot be reached; try again"),
    "reset": (UpstreamUnavailable, "the provider closed the connection without an answer"),
    "broken": (UpstreamUnavailable, "the provider's answer broke off in its head"),
    "malformed": (UpstreamUnavailable, "the provider's answer is not sound HTTP"),
    "unreadable": (UpstreamUnavailable, "the provider's answer cannot be read, so it is not shown"),
    "timeout": (UpstreamTimeout, "the provider did not answer in time"),
    "cut": (UpstreamUnavailable, "the provider ended the stream early"),
    "stalled": (UpstreamTimeout, "the provider fell silent"),
    "full": (Overloaded, "too many requests wait for this provider; try again"),
}


def upstream_failure(reason: str) -> Refusal:
    """The refusal for what an upstream connection or its pool calls `reason`."""
    kind, message = _UPSTREAM_FAILURES[reason]
    return kind(message)


_ANTHROPIC_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_BEDROCK_KINDS = {
    400: "ValidationException",
    401: "AccessDeniedException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    429: "ThrottlingException",
    503: "ServiceUnavailableException",
    504: "ModelTimeoutException",
}
_GEMINI_STATES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def render(refusal: Refusal, dialect: str = "openai", request_id: str = "") -> bytes:
    """The JSON body of a refusal in the shape the dialect's SDKs read.

    OpenAI: `{"error": {"message", "type", "param", "code"}}`.
    Anthropic: `{"type": "error", "error": {"type", "message"}, "request_id"}`.
    Gemini: `{"error": {"code", "message", "status"}}`; `code` is the HTTP status.
    Bedrock: `{"__type", "message"}`. Cohere: `{"message"}`. Ollama: `{"error"}`, a sentence.
    """
    if dialect == "gemini":
        state = _GEMINI_STATES.get(refusal.status, "FAILED_PRECONDITION")
        return orjson.dumps(
            {"error": {"code": refusal.status, "message": refusal.message, "status": state}}
        )
    if dialect == "bedrock":
        kind = _BEDROCK_KINDS.get(refusal.status, "InternalServerException")
        return orjson.dumps({"__type": kind, "message": refusal.message})
    if dialect == "cohere":
        return orjson.dumps({"message": refusal.message})
    if dialect == "ollama":
        return orjson.dumps({"error": refusal.message})
    if dialect == "anthropic":
        kind = _ANTHROPIC_KINDS.get(refusal.status, "api_error")
        return orjson.dumps(
            {
                "type": "error",
                "error": {"type": kind, "message": refusal.message},
                "request_id": request_id,
            }
        )
    return orjson.dumps(
        {
            "error": {
                "message": refusal.message,
                "type": refusal.kind,
                "param": None,
                "code": refusal.code,
            }
        }
    )


def render_event(refusal: Refusal, dialect: str, request_id: str = "") -> bytes:
    """The server-sent event that tells the reader of a stream why it ends."""
    data = b"data: " + render(refusal, dialect, request_id) + b"\n\n"
    return b"event: error\n" + data if dialect == "anthropic" else data
