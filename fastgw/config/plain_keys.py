"""Reads `[[keys]]` in which all is well, at some 2 us each; there may be 100,000.

What is wrong with an entry, and anything else that needs a word or a look around (a variable, a
file, two secrets, a key that is never valid), is for the reader of tables: None is returned then,
and the entry is read again by that.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any

from fastgw.config.secret import LEAST_LENGTH
from fastgw.config.tables import Key, settings_of
from fastgw.config.values import BAD, ValueReader

if TYPE_CHECKING:
    from collections.abc import Mapping

_NAME = re.compile(r"[A-Za-z0-9_.:@+-]{1,128}")
_SECRET = re.compile(rf"[!-#%-~]{{{LEAST_LENGTH},}}")
_MET = 10_000
"""Texts that are kept to be shared by equal ones."""


class PlainKeys:
    """See the module."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._texts: dict[str, str] = {}
        self._sound = True
        self._readers = {
            name: ValueReader(setting, f"keys.{name}", environ, self._wrong)
            for name, setting in settings_of(Key).items()
            if not setting.spelled and name not in ("name", "metadata")
        }

    def _wrong(self, where: tuple[str | int, ...], message: str) -> None:
        self._sound = False

    def read(self, entry: dict[str, Any]) -> Key | None:
        """The key of an entry, None if it is not plain."""
        name = entry.get("name")
        if type(name) is not str or _NAME.fullmatch(name) is None:
            return None
        secret = entry.get("key_hash")
        if secret is None:
            secret = entry.get("key")
            if type(secret) is not str or _SECRET.fullmatch(secret) is None:
                return None
            digest = hashlib.sha256(secret.encode()).digest()
        else:
            digest = _digest(secret)
            if not digest:
                return None
        metadata = entry.get("metadata")
        known = 2
        table: dict[str, str] = {}
        if metadata is not None:
            known = 3
            if type(metadata) is not dict:
                return None
            share = self._texts.setdefault if len(self._texts) < _MET else self._texts.get
            for field, value in metadata.items():
                if type(value) is not str or not field or "$" in value or "\0" in value:
                    return None
                table[share(field, field)] = share(value, value)
        if len(entry) == known:
            return Key(name=name, digest=digest, metadata=table)
        return self._with_more(entry, Key(name=name, digest=digest, metadata=table))

    def _with_more(self, entry: dict[str, Any], key: Key) -> Key | None:
        self._sound = True
        for name, raw in entry.items():
            if name in ("name", "key_hash", "metadata"):
                continue
            if name == "key":
                if "key_hash" in entry:
                    return None
                continue
            if name == "previous_key_hash":
                key.previous_digest = _digest(raw)
                if not key.previous_digest:
                    return None
                continue
            reader = self._readers.get(name)
            if reader is None:
                return None
            value = reader.read(raw)
            if value is BAD or not self._sound:
                return None
            setattr(key, name, value)
        if key.not_before and key.expires_at:
            return None
        return key


def _digest(text: Any) -> bytes:
    """The digest that a `sha256:…` names, b"" if it names none."""
    if type(text) is not str or len(text) != 71 or not text.startswith("sha256:"):
        return b""
    try:
        digest = bytes.fromhex(text[7:])
    except ValueError:
        return b""
    return digest if len(digest) == 32 else b""  # blanks between the digits are none of ours
