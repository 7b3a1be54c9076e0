"""The dialects that `[[upstreams]] dialect` names: which formats a provider speaks.

A provider has several formats side by side (Anthropic has messages and a copy of OpenAI's chat);
the path of a request says which one it is. Where no format knows the path, what an answer reports
is recognised by its content.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from fastgw.compiled import interpreted
from fastgw.usage.anthropic import ANTHROPIC
from fastgw.usage.api import Api
from fastgw.usage.bedrock import BEDROCK
from fastgw.usage.cohere import COHERE
from fastgw.usage.gemini import GEMINI
from fastgw.usage.ollama import OLLAMA
from fastgw.usage.openai import OPENAI
from fastgw.usage.tgi import TGI_API
from fastgw.usage.vertex import VERTEX
from fastgw.usage.watsonx import WATSONX

if TYPE_CHECKING:
    from fastgw.model import Usage


@interpreted
class Several(Api):
    """Formats told apart by content: the first that owns a message, or has a usage's names."""

    def __init__(self, *apis: Api) -> None:
        """Errors and credential are as in the first; OpenAI's takes what no other does."""
        self._apis = sorted(apis, key=lambda api: api is OPENAI)
        self.shape = apis[0].shape
        self.credential = apis[0].credential
        self.MODELS = frozenset().union(*(api.MODELS for api in apis))
        self.SHOWS_OLD_USAGE = tuple(path for api in apis for path in api.SHOWS_OLD_USAGE)
        patterns = dict.fromkeys(api.USAGE.pattern for api in apis)
        self.USAGE = re.compile(b"|".join(patterns))
        marks = {api.MARK for api in apis}
        self.MARK = marks.pop() if len(marks) == 1 else b""

    def _owner(self, message: dict[str, Any]) -> Api:
        for api in self._apis:
            if api.owns(message):
                return api
        return self._apis[-1]

    def usage_object(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """See Api."""
        return self._owner(message).usage_object(message)

    def normal_form(self, usage: dict[str, Any]) -> Usage | None:
        """See Api."""
        for api in self._apis:
            if api.reads(usage):
                return api.normal_form(usage)
        return self._apis[-1].normal_form(usage)

    def is_usage_only(self, event: dict[str, Any]) -> bool:
        """See Api."""
        return self._owner(event).is_usage_only(event)

    def texts(self, message: dict[str, Any]) -> list[str]:
        """See Api."""
        return self._owner(message).texts(message)

    def calls(self, message: dict[str, Any]) -> int:
        """See Api."""
        return self._owner(message).calls(message)

    def model(self, message: dict[str, Any]) -> str:
        """See Api."""
        return self._owner(message).model(message)

    def usage_at_end(self, tail: bytes) -> dict[str, Any] | None:
        """See Api."""
        found = (api.usage_at_end(tail) for api in self._apis)
        return next(filter(None, found), None)

    def failed(self, message: dict[str, Any]) -> bool:
        """See Api."""
        return self._owner(message).failed(message)


class Dialect(NamedTuple):
    """What a provider speaks. `apis`: its own format first; `any`: all of them, by content.
    `credential`: see Api, "" where it follows the format. `asks`: its streams are asked for usage,
    if the upstream's `include_usage` says so too."""

    apis: tuple[Api, ...]
    any: Several
    credential: str = ""
    asks: bool = True

    def find(self, below: str) -> tuple[Api, str]:
        """The format and operation of a path below the base URL; operation "" where no format
        knows it."""
        for api in self.apis:
            if name := api.operation(below):
                return api, name
        return self.any, ""


def _dialect(*apis: Api, credential: str = "", asks: bool = True) -> Dialect:
    return Dialect((*apis, VERTEX), Several(*apis), credential, asks)


_BEARER = OPENAI.credential
_ALL = (OLLAMA, COHERE, GEMINI, BEDROCK, WATSONX, ANTHROPIC, TGI_API, OPENAI)
_COMPATIBLE = _dialect(OPENAI, ANTHROPIC, credential=_BEARER)
"""Others that serve OpenAI's formats, and some of them Anthropic's messages."""

DIALECTS: dict[str, Dialect] = {
    "openai": _COMPATIBLE,
    "azure": _dialect(OPENAI, ANTHROPIC, credential="api-key: "),
    "anthropic": _dialect(ANTHROPIC, OPENAI),
    "gemini": _dialect(GEMINI, ANTHROPIC, OPENAI),
    "bedrock": _dialect(BEDROCK, ANTHROPIC, OPENAI, credential=_BEARER),
    "cohere": _dialect(COHERE, OPENAI),
    "ollama": _dialect(OLLAMA, ANTHROPIC, OPENAI, credential=_BEARER),
    "tgi": _dialect(TGI_API, OPENAI),
    "watsonx": _dialect(WATSONX, OPENAI),
    "mistral": _COMPATIBLE._replace(asks=False),  # reports by itself, and has rejected the option
    "groq": _COMPATIBLE,
    "deepseek": _dialect(OPENAI, ANTHROPIC),
    "xai": _COMPATIBLE,
    "openrouter": _COMPATIBLE,
    "vllm": _COMPATIBLE,
    "sglang": _COMPATIBLE,
    "llamacpp": _COMPATIBLE,
    "auto": Dialect((*_ALL, VERTEX), Several(OPENAI, *_ALL[:-1])),
}
"""By the name in the configuration."""
