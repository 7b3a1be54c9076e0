"""`fastgw demo`: a provider of our own, a gateway, two keys; nothing to configure.

Everything lives in a folder that is removed at the end: demo.toml, with which `fastgw budgets` and
`fastgw check` work while the demo runs, and the SQLite file of the budgets.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import uvloop

from fastgw.config import load
from fastgw.demo.provider import StubProvider

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastgw.config.tables import Config

ALICE = "sk-alice-abc123def456"
BOB = "sk-bob-xyz789uvw012"

_CONFIG = """\
# Written by `fastgw demo`, removed when it ends. config.toml in the project explains each setting.
[server]
listen = "127.0.0.1:{port}"

[admin]
listen = "127.0.0.1:{admin_port}"

[store]
url = "sqlite:{folder}/demo.db"

[[keys]]
name = "alice"
key = "{alice}"
metadata = {{ user_id = "alice" }}

[[keys]]
name = "bob"
key = "{bob}"
metadata = {{ user_id = "bob" }}

[[budgets]]
name = "per-user-daily"
per = ["user_id"]
unit = "tokens"
limit = 100
window = "day"

[[upstreams]]
name = "stub"
base_url = "http://127.0.0.1:{provider_port}/v1"
api_key = "sk-provider-demo"

[[routes]]
path_prefix = "/openai"
upstream = "stub"

[metrics]
labels = {{ user_id = "apiKey.user_id" }}

[access_log]
path = ""
"""

_TEXT = """\
The gateway listens on http://{data}, its operator's port is http://{admin}.
Two keys, 100 tokens a day each; the built-in provider answers with 19 tokens.
Try in another terminal:

1. A request with alice's key: 200

   curl -i http://{data}/openai -H "Authorization: Bearer {alice}" \\
     -H "Content-Type: application/json" \\
     -d '{{"model": "gpt-3.5-turbo", "messages": [{{"role": "user", "content": "Hello!"}}]}}'

2. Until her budget is used up: the request that crosses it completes, the next is a 429

   for i in $(seq 1 10); do curl -s -o /dev/null -w "request $i: HTTP %{{http_code}}\\n" \\
     http://{data}/openai -H "Authorization: Bearer {alice}" -H "Content-Type: application/json" \\
     -d '{{"model": "gpt-3.5-turbo", "messages": [{{"role": "user", "content": "Hello!"}}]}}'; done

3. Bob has his own: 200, here as a stream

   curl -N http://{data}/openai/v1/chat/completions -H "Authorization: Bearer {bob}" \\
     -H "Content-Type: application/json" \\
     -d '{{"model": "gpt-3.5-turbo", "stream": true,
          "messages": [{{"role": "user", "content": "Hello!"}}]}}'

4. Who used what

   {command} budgets --config {config}
   curl -s http://{admin}/metrics | grep gen_ai_client_token_usage_sum

Ctrl-C ends the demo and removes its files.
"""


class Gateway(Protocol):
    """What the demo asks of a gateway process."""

    addresses: list[str]
    admin_address: str

    async def start(self) -> None:
        """Listen."""

    async def stop(self) -> None:
        """End."""


def run(port: int, admin_port: int, make_gateway: Callable[[Config], Gateway]) -> int:
    """Run the demo until SIGINT or SIGTERM; returns the exit code.

    Ports of 0 mean free ones. `make_gateway` is handed in: the process floor is above this one.
    """
    folder = Path(tempfile.mkdtemp(prefix="fastgw-demo-"))
    try:
        uvloop.run(_run(folder, port or _free_port(), admin_port or _free_port(), make_gateway))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


async def _run(
    folder: Path, port: int, admin_port: int, make_gateway: Callable[[Config], Gateway]
) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    provider = StubProvider()
    await provider.start("127.0.0.1", 0)
    try:
        path = folder / "demo.toml"
        path.write_text(
            _CONFIG.format(
                port=port,
                admin_port=admin_port,
                folder=folder,
                alice=ALICE,
                bob=BOB,
                provider_port=provider.port,
            )
        )
        gateway = make_gateway(load([path]))
        await gateway.start()
        try:
            print(
                _TEXT.format(
                    data=gateway.addresses[0],
                    admin=gateway.admin_address,
                    alice=ALICE,
                    bob=BOB,
                    command=_command(),
                    config=path,
                ),
                flush=True,
            )
            await stopping.wait()
        finally:
            await gateway.stop()
    finally:
        await provider.close()


def _command() -> str:
    """How this fastgw is called from the folder in which the demo was started."""
    program = Path(sys.argv[0])
    if program.name == "fastgw":
        try:
            return str(program.resolve().relative_to(Path.cwd()))
        except ValueError:
            return str(program)
    return f"{sys.executable} -m fastgw"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
