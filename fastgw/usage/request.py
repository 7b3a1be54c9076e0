"""Reads a request body: model, stream, and whether usage was asked for.

The provider must see the same thing that we judged. Where the answer depends on the body (a key
limited to models, a model that is replaced), the body is written anew from what we read, so that a
repeated member cannot mean one model to us and another to the provider; and a member that differs
from `model` in case alone is refused, since some parsers ignore case.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import orjson

from fastgw.errors import BadBody, NotMeterable
from fastgw.skeleton import Skeleton, is_part
from fastgw.sse import BOM
from fastgw.usage.payload import printable, read_object

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from fastgw.usage.api import Api

_BOUNDARY = re.compile(
    rb"multipart/form-data *; *boundary=(\"?)([0-9A-Za-z'()+_,./:=?-]{1,70})\1", re.IGNORECASE
)
_DISPOSITION = re.compile(
    rb'content-disposition: form-data; name="([^"\\\r\n]*)"'
    rb'(?:; filename="[^"\r\n]*")?(?:; filename\*=[^;"\r\n]*)?',
    re.IGNORECASE,
)
HUGE = 256 * 1024
"""A body past this size is read without its long strings, if it holds little else: a megabyte of
base64 takes 0.2 ms instead of 1."""
LOOK = 1024
LOOKS = 16

_ASK = b'"stream_options":{"include_usage":true},'


RequestBody = tuple[bytes, dict[str, Any], str, bool, bool]
"""(body to send, what it says, model asked for or "", stream, injected): `injected` means that
usage was asked for by us, so its extra event must be taken out of the stream."""


def read_json(
    body: bytes,
    ask_usage: bool,
    strict: bool,
    model: str = "",
    aliases: Mapping[str, str] | None = None,
    named: str = "",
    streams: bool | None = None,
    whole: bool = False,
    adds: bool = True,
    without: Container[str] = (),
) -> RequestBody:
    """Read a JSON body.

    `ask_usage`: streams of this operation take `stream_options`. `strict`: the model decides
    whether the request is allowed. `model` and `aliases` replace the model. `named`: the model that
    the path names; the body's is not looked at. `streams`: what the path says of it; where the
    format streams by itself True, and the body may say no. `whole`: the message that is returned
    will be written anew; else it may lack parts of long strings (see skeleton). `adds`: `model` is
    sent where the body names none, too. `without`: models whose streams are not asked. Raises
    BadBody.
    """
    left_out, message = False, None
    if len(body) > HUGE and not (whole or strict or model or aliases):
        message = _without_long_strings(body)
        left_out = message is not None
    if message is None:
        message = read_object(body)
    if message is None:
        raise BadBody("the request body is not a JSON object")
    asked = message.get("model")
    if asked is not None and not isinstance(asked, str):
        raise BadBody("'model' must be a string")
    name = named or printable(asked or "")
    stream = message.get("stream")
    stream = stream is True if streams is None else streams and stream is not False
    target = (
        "" if named or not (adds or asked) else model or (aliases.get(name, "") if aliases else "")
    )
    rewrite = strict or bool(target)
    if rewrite or (model and not named):
        for member in message:
            if member != "model" and member.casefold() == "model":
                raise BadBody(f"{member!r} is ambiguous: the member is called 'model'")
    if target:
        message["model"] = target
    injected = False
    if stream and ask_usage and name not in without:
        options = message.get("stream_options")
        if not (isinstance(options, dict) and options.get("include_usage") is True):
            injected = True
            if options is None and "stream_options" not in message and not rewrite:
                body = asking_usage(body)
            else:
                merged = dict(options) if isinstance(options, dict) else {}
                merged["include_usage"] = True
                if left_out:
                    message = read_object(body) or message
                message["stream_options"] = merged
                rewrite = True
    if rewrite:
        try:
            body = orjson.dumps(message)
        except TypeError:
            raise BadBody("the request body holds a value that JSON cannot carry") from None
    return body, message, name, stream, injected


def asking_usage(body: bytes) -> bytes:
    """The body of a stream, which has no `stream_options`, with one that asks for usage. The object
    that it holds has a member."""
    at = body.index(b"{") + 1
    if len(body) < HUGE:
        return body[:at] + _ASK + body[at:]
    return b"".join((body[:at], _ASK, memoryview(body)[at:]))  # one copy, not two


def _without_long_strings(body: bytes) -> dict[str, Any] | None:
    """The message of a large body that consists of images or documents, as far as some looks tell;
    None of any other, which is read as fast as it is looked through."""
    looks = [body[at : at + LOOK] for at in range(0, len(body), len(body) // LOOKS)]
    if sum(b'"' in look or b"\\" in look for look in looks) > LOOKS // 4:
        return None
    skeleton = Skeleton((body,))
    message = read_object(b"".join(skeleton))
    if message is None or skeleton.heavy or is_part(message.get("model")):
        return None
    return message


def refuse_unmeterable(operation: str, message: dict[str, Any]) -> None:
    """Refuse under a budget what would be paid for where no budget sees it. Raises NotMeterable."""
    if operation == "batch":
        raise NotMeterable("batches cannot be used under a budget: no answer tells their cost")
    if operation == "responses" and message.get("background") is True:
        raise NotMeterable(
            "'background' cannot be used under a budget: its usage comes with no answer of ours; "
            "leave it out"
        )


def output_limit(api: Api, operation: str, message: dict[str, Any], default: int) -> int:
    """Output tokens that an answer may have: what the request allows, times its choices; `default`
    for each where it allows any number. 0 for an operation that makes no text. Of several limits
    the largest counts: a provider that does not know one of them keeps to another. Raises BadBody
    for one that is no number, which some providers would obey, and some not."""
    if operation not in api.LIMITS:
        return 0
    found = -1
    for name in api.LIMITS[operation]:
        value = _number(message, name)
        if value is None:
            continue
        if value < 0:
            found = -1
            break
        found = max(found, value)
    return (found if found >= 0 else default) * _choices(api, message)


def limit_output(api: Api, operation: str, message: dict[str, Any], room: int) -> int:
    """Make the request ask for `room` output tokens at most, over all its choices. Returns what it
    asks for now, 0 if that cannot be done: a limit "" has a name that we do not know."""
    names = api.LIMITS.get(operation)
    each = room // _choices(api, message)
    if not names or each < 1:
        return 0
    present = [name for name in names if _member(message, name) is not _MISSING]
    for name in present or names[-1:]:
        if not name:
            return 0
        place = message
        *inner, last = name.split(".")
        for step in inner:
            found = place.get(step)
            if not isinstance(found, dict):
                found = place[step] = {}
            place = found
        place[last] = each
    return each * _choices(api, message)


_MISSING: Any = object()


def _member(message: dict[str, Any], name: str) -> Any:
    """The member of that name; dots lead inwards."""
    if "." not in name:
        return message.get(name, _MISSING)
    place: Any = message
    for step in name.split("."):
        if not isinstance(place, dict) or step not in place:
            return _MISSING
        place = place[step]
    return place


def _number(message: dict[str, Any], name: str) -> int | None:
    """The whole number of that name, None without one. Raises BadBody for anything else."""
    value = _member(message, name) if "." in name else message.get(name)
    if type(value) is int:
        return value
    if value is None or value is _MISSING:
        return None
    if type(value) is float and value.is_integer():
        return int(value)
    raise BadBody(f"{name!r} must be a whole number")


def _choices(api: Api, message: dict[str, Any]) -> int:
    """Answers that are made, and paid for: some for each prompt of a list."""
    most = 1
    for name in api.CHOICES:
        value = _number(message, name)
        if value is not None and value > most:
            most = value
    prompts = message.get("prompt")
    if type(prompts) is list and len(prompts) > 1 and type(prompts[0]) is not int:
        most *= len(prompts)
    return most


def without_usage(body: bytes) -> bytes:
    """The body that was sent before usage was asked for."""
    start, found, rest = body.partition(_ASK)
    if found and start.removeprefix(BOM).strip() == b"{":
        return start + rest
    message = read_object(body) or {}
    options = message.pop("stream_options", None)
    if isinstance(options, dict):
        options.pop("include_usage", None)
        if options:
            message["stream_options"] = options
    return orjson.dumps(message)


def read_form(
    body: bytes, content_type: bytes, model: str = "", aliases: Mapping[str, str] | None = None
) -> tuple[bytes, str]:
    """A multipart form as it is sent on, and the model that it names, "" if it names none or
    several (RFC 7578). `model` and `aliases` replace it.

    Read by its boundary and only in the plain form that clients send; anything that another parser
    could read as another field is refused. Raises BadBody.
    """
    match = _BOUNDARY.fullmatch(content_type)
    if match is None:
        raise BadBody("multipart/form-data without one plain boundary")
    delimiter = b"\r\n--" + match[2]
    first, *parts = (b"\r\n" + body).split(delimiter)
    if first or len(parts) < 2 or parts[-1].rstrip(b"\r\n") != b"--":
        raise BadBody("the form does not begin and end with its boundary")
    found: list[int] = []
    for number, part in enumerate(parts[:-1]):
        head, blank, _ = part.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        fields = [line for line in lines if line[:20].lower().startswith(b"content-disposition")]
        disposition = _DISPOSITION.fullmatch(fields[0]) if len(fields) == 1 else None
        if not blank or lines[0] or disposition is None:
            raise BadBody(
                "each part of the form needs one line 'Content-Disposition: form-data; name=\"…\"'"
            )
        if disposition[1].lower() == b"model":
            found.append(number)
    if len(found) != 1:
        if found and (model or aliases):
            raise BadBody("the form names several models; send one")
        return body, ""
    head, blank, value = parts[found[0]].partition(b"\r\n\r\n")
    name = value.decode("utf-8", "replace")
    target = model or (aliases.get(name, "") if aliases else "")
    if target:
        parts[found[0]] = head + blank + target.encode()
        body = delimiter.join((first, *parts))[2:]
    return body, name
