"""The way to Redis or Valkey: connections, deadlines, and which server has which account.

A `Wire` is one connection to one server and carries one exchange at a time. After any failure,
time-out or cancellation it is closed and never used again: a late reply on it would be read as the
answer to the next call (CVE-2023-28858). An error that the server answers in step, as NOSCRIPT, is
a reply and breaks nothing.

A `Link` is what a store talks to: one server here, the master that Sentinels name in `sentinel`,
the masters of a cluster in `cluster`. It knows scripts and keys, not what they mean.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import hiredis
from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from fastgw import tasks
from fastgw.errors import StoreUnavailable

if TYPE_CHECKING:
    from fastgw.config.redis_url import RedisUrl

_T = TypeVar("_T")

Address = tuple[str, int]
"""Host and port."""

Command = tuple[str | int, ...]

_pack: Callable[[Command], bytes] = hiredis.pack_command  # type: ignore[assignment]

REPORT_TIMEOUT = 10.0
_SCAN_COUNT = 500


class Script:
    """A Lua script and the name by which a server knows it once it was loaded."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode()).hexdigest()


class Call(NamedTuple):
    """One run of a script: KEYS and ARGV."""

    keys: list[str]
    arguments: list[str | int]


class Answer(NamedTuple):
    """What the script returned for some lines of a batch, by their positions in it."""

    lines: Sequence[int]
    values: list[Any]


Encode = Callable[[Sequence[int]], Call]
"""The call for the lines at these positions of a batch."""


class Link(Protocol):
    """What a store needs of its servers. Verbs that talk raise StoreUnavailable in time."""

    def tag(self, account: str) -> str:
        """What stands before an account in its key: the hash tag that decides its server, or ""."""

    def untag(self, name: str) -> str:
        """The account of a key's name: what follows its tag."""

    async def open(self) -> None:
        """Connect, if need be, and ask whether the server is there."""

    async def evaluate(
        self, script: Script, accounts: Sequence[str], encode: Encode
    ) -> list[Answer]:
        """Run the script over all lines, in as few calls as there are places to go.

        `accounts` names the account of each line. Each position is in one answer, whatever their
        order. On StoreUnavailable some calls may have been run.
        """

    async def hashes(self, pattern: str) -> dict[str, dict[str, str]]:
        """Every hash whose key matches, with its fields; over connections of its own: for reports,
        which may take longer than the deadline."""

    async def drop(self) -> None:
        """Close what may be out of step. The next call connects anew."""

    async def close(self) -> None:
        """The same, for good."""


class Wire:
    """One connection to one server; connects by itself."""

    def __init__(self, url: RedisUrl, address: Address) -> None:
        self.address = address
        self._connection = _connection(url, address)
        self._transport: asyncio.WriteTransport | None = None
        self._turn = asyncio.Lock()
        self._retired = False

    async def exchange(self, *commands: Command) -> list[Any]:
        """Send all, then read as many replies. An error that a server replied stands in its place;
        whatever else goes wrong closes the connection and is raised as redis-py has it."""
        async with self._turn:
            connection = self._connection
            try:
                if self._transport is not None and self._ended():
                    await self.drop()
                if self._transport is None:
                    await connection.connect()  # type: ignore[no-untyped-call]
                    # redis-py closes politely, which waits for a server that does not read.
                    self._transport = connection._writer.transport  # type: ignore[union-attr]
                # redis-py's own packing takes eight times as long: 2.8 ms for a batch of 500 lines
                packed = b"".join(map(_pack, commands))
                await connection.send_packed_command(packed)
                replies: list[Any] = []
                for _ in commands:
                    try:
                        replies.append(await connection.read_response())
                    except ResponseError as error:
                        replies.append(error)
                if self._retired:
                    await self.drop()
                return replies
            except BaseException:
                await self.drop()
                raise

    def _ended(self) -> bool:
        """Whether the server went since the last exchange: nothing was sent, so nothing is lost."""
        assert self._transport is not None
        reader = self._connection._reader
        ended = reader is None or reader.at_eof() or reader.exception() is not None
        return ended or self._transport.is_closing()

    async def run(
        self, script: Script, calls: Sequence[Call], *, asking: bool = False
    ) -> list[Any]:
        """Run a script so many times; a reply for each. `asking`: from a slot that moves here."""
        before: tuple[Command, ...] = (("ASKING",),) if asking else ()
        replies = await self.exchange(
            *(command for call in calls for command in (*before, _evalsha(script, call)))
        )
        replies = replies[len(before) :: 1 + len(before)]
        missing = [at for at, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if missing:  # the server is new, was restarted, or its scripts were flushed
            again = (
                command for at in missing for command in (*before, _evalsha(script, calls[at]))
            )
            second = await self.exchange(("SCRIPT", "LOAD", script.text), *again)
            accepted(second[0])
            for at, reply in zip(missing, second[1 + len(before) :: 1 + len(before)], strict=True):
                replies[at] = reply
        return replies

    async def hashes(self, pattern: str) -> dict[str, dict[str, str]]:
        """See Link."""
        found: dict[str, dict[str, str]] = {}
        cursor: str | int = 0
        while True:
            scan: Command = ("SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN_COUNT)
            cursor, names = accepted((await self.exchange(scan))[0])
            replies = await self.exchange(*(("HGETALL", name) for name in names)) if names else []
            for name, flat in zip(names, replies, strict=True):
                if isinstance(flat, list) and flat:  # else gone meanwhile, or no hash
                    found[name] = dict(zip(flat[::2], flat[1::2], strict=True))
            if str(cursor) == "0":
                return found

    async def retire(self) -> None:
        """Close when the exchange under way has ended, and after each that still comes."""
        self._retired = True
        if not self._turn.locked():
            await self.drop()

    async def drop(self) -> None:
        """Close at once, whatever was sent or is on its way."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
        await self._connection.disconnect(nowait=True)


def _connection(url: RedisUrl, address: Address) -> Connection:
    kind: Any = Connection
    options = dict(url.options)
    if url.tls:
        kind = SSLConnection
        # older versions of redis-py do not look at the name by themselves
        options.setdefault("ssl_check_hostname", options.get("ssl_cert_reqs") != "none")
    made: Connection = kind(
        **options,
        host=address[0],
        port=address[1],
        db=url.db,
        username=url.username or None,
        password=url.password or None,
        # One deadline over all, see `within`; a repeat by the client would pass it.
        socket_timeout=None,
        socket_connect_timeout=None,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
        socket_keepalive=True,
        decode_responses=True,
        encoding_errors="replace",  # bytes that somebody else wrote make no report fail
        protocol=2,
    )
    return made


def _evalsha(script: Script, call: Call) -> Command:
    return ("EVALSHA", script.sha, len(call.keys), *call.keys, *call.arguments)


def accepted(reply: Any) -> Any:
    """The reply, unless it is an error."""
    if isinstance(reply, ResponseError):
        raise reply
    return reply


class SingleLink:
    """See Link. All accounts are on one server: the one at the URL, or whichever `find` finds."""

    def __init__(self, find: Callable[[], Awaitable[Wire]], timeout: float) -> None:
        """`find` returns a wire to the server and is asked again after each failure.
        `timeout`: hard deadline of a call in seconds, finding and connecting included."""
        self._find = find
        self._timeout = timeout
        self._wire: Wire | None = None

    def tag(self, account: str) -> str:
        """See Link."""
        return ""

    def untag(self, name: str) -> str:
        """See Link."""
        return name

    async def open(self) -> None:
        """See Link."""
        await self._guarded(self._ping(), self._timeout)

    async def evaluate(
        self, script: Script, accounts: Sequence[str], encode: Encode
    ) -> list[Answer]:
        """See Link."""
        lines = range(len(accounts))
        values = await self._guarded(self._run(script, encode(lines)), self._timeout)
        return [Answer(lines, values)]

    async def hashes(self, pattern: str) -> dict[str, dict[str, str]]:
        """See Link."""
        return await within(REPORT_TIMEOUT, self._read(pattern))

    async def drop(self) -> None:
        """See Link."""
        wire, self._wire = self._wire, None
        if wire is not None:
            await wire.drop()

    async def close(self) -> None:
        """See Link."""
        await self.drop()
        await asyncio.sleep(0)  # the loop closes an aborted socket in its next turn

    async def _wired(self) -> Wire:
        if self._wire is None:
            self._wire = await self._find()
        return self._wire

    async def _ping(self) -> None:
        accepted((await (await self._wired()).exchange(("PING",)))[0])

    async def _run(self, script: Script, call: Call) -> list[Any]:
        wire = await self._wired()
        values: list[Any] = accepted((await wire.run(script, [call]))[0])
        return values

    async def _read(self, pattern: str) -> dict[str, dict[str, str]]:
        wire = await self._find()
        try:
            return await wire.hashes(pattern)
        finally:
            await wire.drop()

    async def _guarded(self, work: Awaitable[_T], seconds: float) -> _T:
        try:
            return await within(seconds, work)
        except BaseException:
            await self.drop()
            raise


def single(url: RedisUrl, timeout: float) -> SingleLink:
    """The link to the one server of a URL."""

    async def find() -> Wire:
        return Wire(url, url.hosts[0])

    return SingleLink(find, timeout)


async def within(seconds: float, work: Awaitable[_T]) -> _T:
    """Await `work` until its deadline; what goes wrong is StoreUnavailable, without secrets."""
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError:
        raise StoreUnavailable(f"Redis took longer than {seconds} s") from None
    except (RedisError, OSError, ValueError) as error:
        raise StoreUnavailable(f"Redis: {reason(error)}") from None


async def first(attempts: Sequence[Coroutine[Any, Any, _T]]) -> _T:
    """The result of the attempt that succeeds first; the others are cancelled. If all fail, what
    the last of them raised."""
    result: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
    left = len(attempts)

    async def attempt(work: Coroutine[Any, Any, _T]) -> None:
        nonlocal left
        try:
            won = await work
        except Exception as error:
            left -= 1
            if not left and not result.done():
                result.set_exception(error)
        else:
            if not result.done():
                result.set_result(won)

    running = [tasks.spawn(attempt(work), "store lookup") for work in attempts]
    try:
        return await result
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


_WORDS = {
    "READONLY": "the server is a replica and takes no writes",
    "OOM": "the server has reached its maxmemory and takes no writes",
    "MISCONF": "the server cannot save its data and takes no writes",
    "NOREPLICAS": "the server has too few replicas and takes no writes",
    "MASTERDOWN": "the server is a replica without its master",
    "LOADING": "the server still reads its data",
    "BUSY": "the server runs a script that does not end",
    "NOPERM": "the user lacks a right that fastgw needs",
    "NOAUTH": "the server wants a password",
    "WRONGPASS": "the server refuses the user or the password",
    "MOVED": "the server belongs to a cluster; write redis+cluster://",
    "CROSSSLOT": "the server belongs to a cluster; write redis+cluster://",
    "CLUSTERDOWN": "the cluster has no master for some accounts",
}
_CODES: tuple[tuple[type[Exception], str], ...] = (
    # redis-py takes the code off the text of the errors that it has a class for
    (NoScriptError, "NOSCRIPT"),
    (OutOfMemoryError, "OOM"),
    (ReadOnlyError, "READONLY"),
    (BusyLoadingError, "LOADING"),
    (NoPermissionError, "NOPERM"),
    (MovedError, "MOVED"),
    (AskError, "ASK"),
    (TryAgainError, "TRYAGAIN"),
    (ClusterCrossSlotError, "CROSSSLOT"),
    (MasterDownError, "MASTERDOWN"),
    (ClusterDownError, "CLUSTERDOWN"),
)
_PHRASES = {
    "Authentication required": "NOAUTH: the server wants a password",
    "DB index": "the database of the URL does not exist",
    "SELECT is not allowed in cluster mode": "the server belongs to a cluster, which has"
    " database 0 alone; write redis+cluster://",
    "without any password configured": "the URL has a password, the server has none",
    "max number of clients": "the server has too many clients",
    "cluster support disabled": "the server belongs to no cluster; write redis://",
    "unknown command": "the server lacks a command that fastgw needs",
    "mismatch, certificate is not valid for": "the server's certificate is for another name, see"
    " ssl_check_hostname",
    "CERTIFICATE_VERIFY_FAILED": "the server's certificate is not trusted, see ssl_ca_certs",
    "No such file": "a file that the URL names cannot be read",
    " connecting to ": "cannot connect",
    "Timeout reading": "the connection broke",
}


def code(error: Exception) -> str:
    """The first word of an error as the server sent it, "" for any other error."""
    for kind, word in _CODES:
        if isinstance(error, kind):
            return word
    return str(error).partition(" ")[0] if isinstance(error, ResponseError) else ""


def reason(error: Exception) -> str:
    """What went wrong, in words that hold no part of the URL's user or password."""
    text = str(error)
    for phrase, words in _PHRASES.items():
        if phrase in text:
            return words
    if isinstance(error, AuthenticationError):
        return f"WRONGPASS: {_WORDS['WRONGPASS']}"
    if words := _WORDS.get(code(error), ""):
        return f"{code(error)}: {words}"
    if isinstance(error, ResponseError):
        for word, words in _WORDS.items():
            if f"-{word} " in text or f": {word} " in text:  # behind what a script's run puts there
                return f"{word}: {words}"
        return "the server answered with an error"
    if isinstance(error, (OSError, RedisConnectionError)):
        return "the connection broke"
    return type(error).__name__
