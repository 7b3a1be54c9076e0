"""Secrets on their way: a virtual key's to its digest, from `key`, `key_hash` or `key_file`; a
credential of ours out of the file that holds it.

A key's secret itself lives in these functions only. No message holds a secret, or any part of one.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any

from fastgw.config.formats import credential
from fastgw.config.values import BAD, expand

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastgw.config.problems import Place, Problems

LEAST_LENGTH = 8
"""Characters of a secret, at least."""

_WAYS = ("key", "key_hash", "key_file")
_HASH = re.compile(r"sha256:([0-9A-Fa-f]{64})")


def read_digests(
    entry: dict[str, Any], place: Place, environ: Mapping[str, str], problems: Problems
) -> tuple[bytes, bytes]:
    """`digest` and `previous_digest` of one [[keys]] entry; BAD for one that is wrong."""
    given = [way for way in _WAYS if way in entry]
    digest: bytes = BAD
    if not given:
        problems.add(place.at("key"), "missing; give one of key, key_hash or key_file")
    elif len(given) > 1:
        problems.add(
            place.at(given[1]), f"a key has one secret, here are {', '.join(given)}; keep one"
        )
    else:
        digest = _read(given[0], entry[given[0]], place, environ, problems)
    previous = b""
    if "previous_key_hash" in entry:
        way = "previous_key_hash"
        previous = _read(way, entry[way], place, environ, problems)
    return digest, previous


def _read(
    way: str, raw: Any, place: Place, environ: Mapping[str, str], problems: Problems
) -> bytes:
    try:
        if not isinstance(raw, str):
            raise ValueError("must be text in quotes; write the value as text")
        text = expand(raw, environ)
        if way.endswith("key_hash"):
            return _from_hash(text)
        if way == "key_file":
            text = _content(text, place)
        return _from_secret(text)
    except ValueError as error:
        problems.add(place.at(way), str(error))
        return BAD  # type: ignore[no-any-return]


def _from_hash(text: str) -> bytes:
    match = _HASH.fullmatch(text)
    if match is None:
        raise ValueError(
            'must be "sha256:" and 64 hexadecimal digits; '
            "write the output of: printf %s SECRET | sha256sum"
        )
    return bytes.fromhex(match[1])


def credential_in(name: str, place: Place) -> str:
    """The credential that the file `name` holds and nothing else, but one line end. Raises
    ValueError where there is none, or one that no header can carry."""
    text = _content(name, place)
    if not text:
        raise ValueError("the file is empty; put the credential there")
    return credential(text, "the value")


def _content(text: str, place: Place) -> str:
    try:
        content = (place.source.folder / text).read_bytes().decode("utf-8")
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or "not text").lower()
        raise ValueError(
            f"the file cannot be read: {reason}; check the path, relative to this file"
        ) from None
    return content.removesuffix("\n").removesuffix("\r")


def _from_secret(text: str) -> bytes:
    if len(text) < LEAST_LENGTH:
        raise ValueError(
            f"a secret has {LEAST_LENGTH} characters or more; make one with: openssl rand -hex 24"
        )
    return hashlib.sha256(credential(text, "the value").encode()).digest()
