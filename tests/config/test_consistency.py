"""What must hold between settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from fastgw.config import load
from fastgw.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

SERVED = """
[[upstreams]]
name = "u"
base_url = "http://127.0.0.1:1"
[[routes]]
path_prefix = "/u"
upstream = "u"
"""
KEY = '[[keys]]\nname = "k"\nkey = "secret-1"\nmetadata = { user_id = "k" }\n'
PROVIDER = '[[upstreams]]\nname = "p"\nbase_url = "http://127.0.0.1:1"\napi_key = "a"\n'


def certificates(folder: Path) -> None:
    """x.pem and other.pem, each a certificate and its key; a key of another kind; a certificate
    that is broken, a key that is encrypted."""
    for name in ("x", "other"):
        sound = trustme.CA().issue_cert("a.example").private_key_and_cert_chain_pem.bytes()
        (folder / f"{name}.pem").write_bytes(sound)
    kind = trustme.KeyType.RSA
    rsa = trustme.CA(key_type=kind).issue_cert("a.example", key_type=kind).private_key_pem
    (folder / "rsa.pem").write_bytes(rsa.bytes())
    (folder / "broken.pem").write_text("-----BEGIN CERTIFICATE-----\nnonsense\n")
    encrypted = load_pem_private_key(sound, None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    (folder / "encrypted.pem").write_bytes(encrypted)


def problems(folder: Path, text: str) -> list[str]:
    path = folder / "c.toml"
    path.write_text(text + SERVED)
    try:
        load([path], {})
    except ConfigError as error:
        return [line.replace(f"{folder}/", "") for line in error.problems]
    return []


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            '[server]\nlisten = "0.0.0.0:9090"\n',
            "c.toml:2: [server] listen: the admin port must not be the data port",
        ),
        (
            '[admin]\nlisten = "127.0.0.1:8080"\n',
            "c.toml:2: [admin] listen: the admin port must not be the data port",
        ),
        (
            '[server]\nlisten = ["127.0.0.1:80", "0.0.0.0:80"]\n',
            "c.toml:2: [server] listen: two addresses share one port",
        ),
        (
            '[server]\ntls_cert = "x.pem"\n',
            "c.toml:2: [server] tls_cert: TLS needs both; give tls_key too",
        ),
        (
            '[server]\ntls_key = "x.pem"\n',
            "c.toml:2: [server] tls_key: TLS needs both; give tls_cert too",
        ),
        (
            '[server]\ntls_cert = "x.pem"\ntls_key = "other.pem"\n',
            "c.toml:2: [server] tls_cert: tls_key is another certificate's",
        ),
        (
            '[server]\ntls_cert = "x.pem"\ntls_key = "rsa.pem"\n',
            "c.toml:2: [server] tls_cert: tls_key is another certificate's",
        ),
        (
            '[server]\ntls_cert = "broken.pem"\ntls_key = "x.pem"\n',
            "c.toml:2: [server] tls_cert: no certificate and key to be read",
        ),
        (
            '[server]\ntls_cert = "x.pem"\ntls_key = "encrypted.pem"\n',
            "c.toml:3: [server] tls_key: the key is encrypted",
        ),
        (
            '[server]\nlisten = ["127.0.0.1:80", "[::]:80"]\n',
            "c.toml:2: [server] listen: two addresses share one port",
        ),
        (
            '[[routes]]\npath_prefix = "/v"\nupstream = "${NONE:-}"\n',
            "c.toml:3: [[routes]] upstream: names no upstream",
        ),
        (
            PROVIDER + 'dialect = "anthropic"\nheaders = { X-Api-Key = "b" }\n',
            "c.toml:6: [[upstreams]] headers.X-Api-Key: api_key is what such a header is sent for",
        ),
        (
            PROVIDER + 'headers = { Authorization = "Bearer b" }\n',
            "c.toml:5: [[upstreams]] headers.Authorization: api_key is what",
        ),
        (
            KEY + "not_before = 2026-02-01T00:00:00Z\nexpires_at = 2026-01-01T00:00:00Z\n",
            "c.toml:6: [[keys]] expires_at: not after not_before (c.toml:5)",
        ),
        (
            KEY + '[[keys]]\nname = "l"\nkey = "secret-2"\n'
            'previous_key_hash = "sha256:'
            '5d27c59e1c8bd8acc7bb2b3ae4b2a5ce6e2e1f7d9ce3ddc79eb66a0f1fd1f2aa"\n'
            '[[keys]]\nname = "k"\nkey = "secret-3"\n',
            'c.toml:10: [[keys]] name: "k" is already used at c.toml:2',
        ),
        (
            KEY + '[[keys]]\nname = "l"\nkey = "secret-1"\n',
            'c.toml:7: [[keys]] key: the same secret as that of key "k" at c.toml:3',
        ),
        (
            KEY + '[[budgets]]\nname = "b"\nlimit = 1\nper = [\n"user_id",\n"team"\n]\n',
            'c.toml:10: [[budgets]] per: no key has the metadata field "team"',
        ),
    ],
)
def test_what_does_not_fit(tmp_path: Path, text: str, line: str) -> None:
    certificates(tmp_path)
    (found,) = problems(tmp_path, text)
    assert found.startswith(line)


@pytest.mark.parametrize(
    "text",
    [
        "",
        '[admin]\nlisten = ""\n',
        '[auth]\nmode = "strict"\n[[budgets]]\nname = "b"\nlimit = 1\nper = ["team"]\n',
        KEY + '[[budgets]]\nname = "b"\nlimit = 0\nper = [\'default(team, "none")\']\n',
        '[[routes]]\npath_prefix = "/u"\nhost = "a.example"\nupstream = "u"\n',
        '[server]\ntls_cert = "x.pem"\ntls_key = "x.pem"\n',
        '[server]\nlisten = ["0.0.0.0:80", "[::1]:80"]\n',
        PROVIDER + 'dialect = "openai"\nheaders = { x-api-key = "for a proxy" }\n',
    ],
    ids=[
        "least",
        "no admin",
        "no keys yet",
        "default",
        "other host",
        "tls",
        "IPv4 and IPv6",
        "another header",
    ],
)
def test_what_does(tmp_path: Path, text: str) -> None:
    certificates(tmp_path)
    assert problems(tmp_path, text) == []


def test_a_wrong_entry_still_counts_by_name(tmp_path: Path) -> None:
    """One mistake is one line: the route to an upstream with a mistake is not a second one."""
    text = '[[upstreams]]\nname = "v"\nbase_url = "h"\n[[routes]]\npath_prefix="/v"\nupstream="v"\n'
    (found,) = problems(tmp_path, text)
    assert "base_url" in found


def test_key_files_hold_keys_only(tmp_path: Path) -> None:
    (tmp_path / "team.toml").write_text("[server]\nmax_head = 1\n" + KEY)
    (found,) = problems(tmp_path, '[auth]\nkey_files = ["team.toml"]\n')
    assert found.startswith("team.toml:1: [server]: a key file holds [[keys]] only")
