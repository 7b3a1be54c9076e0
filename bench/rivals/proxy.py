"""The usual Python proxy as a rival: starlette on uvicorn, httpx towards the provider.

The key is looked up in a set; body and answer are relayed as they come. No access log, no counting.

    PROVIDER=http://127.0.0.1:8000/v1 KEY=sk-alice uvicorn --app-dir bench/rivals proxy:app
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import httpx
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

KEYS = {f"Bearer {os.environ['KEY']}"}
client = httpx.AsyncClient(
    base_url=os.environ["PROVIDER"],
    timeout=600,
    limits=httpx.Limits(max_connections=None, max_keepalive_connections=2048),
)


async def relay(request: Request) -> Response:
    """One exchange."""
    if request.headers.get("authorization") not in KEYS:
        return Response(status_code=401)
    sent = client.build_request(
        "POST",
        request.path_params["path"],
        headers={"authorization": "Bearer sk-upstream", "content-type": "application/json"},
        content=await request.body(),
    )
    answer = await client.send(sent, stream=True)
    return StreamingResponse(
        answer.aiter_raw(),
        answer.status_code,
        headers={name: answer.headers[name] for name in _KEPT if name in answer.headers},
        background=BackgroundTask(answer.aclose),
    )


_KEPT = ("content-type", "content-length")


@asynccontextmanager
async def _lifespan(_: Starlette) -> AsyncIterator[None]:
    yield
    await client.aclose()


app = Starlette(routes=[Route("/openai/{path:path}", relay, methods=["POST"])], lifespan=_lifespan)
