"""Models of other makers at Vertex (Mistral, Llama …): `rawPredict` and `streamRawPredict` take and
give what the maker's own API does, which is OpenAI's chat. Claude's are Anthropic's messages.

Nobody has to ask for the usage of a stream here, and some of these models reject the question.
"""

from __future__ import annotations

import re

from fastgw.compiled import interpreted
from fastgw.usage.openai import OpenAI

_PATH = re.compile(r"/models/([^/:]+):(stream)?rawpredict$", re.IGNORECASE)
"""The model and whether it streams."""


@interpreted
class Vertex(OpenAI):
    """See the module. A path is Anthropic's first."""

    TAKES_STREAM_OPTIONS = frozenset()

    PATH_MODEL = _PATH

    def operation(self, below: str) -> str:
        """See Api."""
        return "chat" if _PATH.search(below) else ""

    def path_streams(self, below: str) -> bool | None:
        """See Api."""
        found = _PATH.search(below)
        return None if found is None else bool(found[2])


VERTEX = Vertex()
