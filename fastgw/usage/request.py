"""Reads a request body in the OpenAI dialect: model, stream, and whether usage was asked for.

The provider must see the same thing that we judged. Where the answer depends on the body (a key
limited to models, a model that is replaced), the body is written anew from what we read, so that a
repeated member cannot mean one model to us and another to the provider; and a member that differs
from `model` in case alone is refused, since some parsers ignore case.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import orjson

from fastgw.errors import BadBody
from fastgw.usage.payload import read_object

if TYPE_CHECKING:
    from collections.abc import Mapping

_FORM_MODEL = re.compile(
    rb'content-disposition:[^\r\n]*;[ ]*name="?model"?[^\r\n]*\r\n'
    rb"(?:[^\r\n]+\r\n)*\r\n([^\r\n]*)\r\n",
    re.IGNORECASE,
)
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
) -> RequestBody:
    """Read a JSON body.

    `ask_usage`: streams of this operation take `stream_options`. `strict`: the model decides
    whether the request is allowed. `model` and `aliases` replace the model. Raises BadBody.
    """
    message = read_object(body)
    if message is None:
        raise BadBody("the request body is not a JSON object")
    asked = message.get("model")
    if asked is not None and not isinstance(asked, str):
        raise BadBody("'model' must be a string")
    name = asked or ""
    stream = message.get("stream") is True
    rewrite = strict
    if strict:
        for member in message:
            if member != "model" and member.casefold() == "model":
                raise BadBody(f"{member!r} is ambiguous: the member is called 'model'")
    target = model or (aliases.get(name, "") if aliases else "")
    if target and target != name:
        message["model"] = target
        rewrite = True
    injected = False
    if stream and ask_usage:
        options = message.get("stream_options")
        if not (isinstance(options, dict) and options.get("include_usage") is True):
            injected = True
            if options is None and "stream_options" not in message and not rewrite:
                at = body.index(b"{") + 1
                body = body[:at] + _ASK + body[at:]
            else:
                merged = dict(options) if isinstance(options, dict) else {}
                merged["include_usage"] = True
                message["stream_options"] = merged
                rewrite = True
    if rewrite:
        try:
            body = orjson.dumps(message)
        except TypeError:
            raise BadBody("the request body holds a value that JSON cannot carry") from None
    return body, message, name, stream, injected


def form_model(body: bytes) -> str:
    """The model that a multipart form names, "" if it names none or several."""
    found = {match[1] for match in _FORM_MODEL.finditer(body)}
    return found.pop().decode("utf-8", "replace") if len(found) == 1 else ""
