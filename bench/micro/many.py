"""A whole exchange without a socket, by how many keys and accounts take turns at random.

Each request is by another key than the one before, so nothing that is kept with a connection helps:
head, key, plan, accounts and labels are worked out each time, as behind a proxy that shares its
connections. `the same head` is what a client of its own connection costs.

    python -m bench.micro.many                  # microseconds, with 1, 1,000 and 100,000 keys
    python -m bench.micro.many --profile 100000
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import pstats
import random
import time
from typing import TYPE_CHECKING

from bench.micro.exchange import CONFIG, Bench, answer, request
from bench.micro.timing import Row, show

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SIZES = (1, 1_000, 100_000)
_HEAD, _, _REST = CONFIG.partition("[[keys]]")
_REST = _REST[_REST.index("[[budgets]]") :]


def config(keys: int, accounts: int, most: int = 10_000) -> str:
    """`keys` that share `accounts` of a budget; `most` series of metrics."""
    entries = (
        f'[[keys]]\nname = "key-{each}"\nkey = "{_secret(each)}"\n'
        f'metadata = {{ user_id = "user-{each % accounts}" }}\n'
        for each in range(keys)
    )
    rest = _REST.replace("[metrics]\n", f"[metrics]\nmax_series = {most}\n")
    return _HEAD + "".join(entries) + rest


def _secret(number: int) -> str:
    return f"sk-many-{number:08d}-abcdef"


def requests(keys: int) -> list[bytes]:
    """A request by each key, heads made unequal even where there is one key only."""
    plain = request()
    found = []
    for number in range(max(keys, 2)):
        one = plain.replace(b"sk-alice-abc123def456", _secret(number % keys).encode())
        found.append(one.replace(b"Python 2.54.0", b"Python 2.%d" % (10 + number % 2)))
    return found


def turns(sent: Sequence[bytes], number: int) -> Iterator[bytes]:
    """So many requests in an order without a pattern, the same each time."""
    order = list(range(len(sent)))
    random.Random(1).shuffle(order)
    for at in range(number):
        yield sent[order[at % len(order)]]


async def warmed(keys: int, accounts: int) -> tuple[Bench, list[bytes]]:
    """A gateway that has served each key once."""
    bench = Bench(config(keys, accounts))
    sent, got = requests(keys), answer()
    for each in sent:
        bench.to_provider.written.clear()
        bench.client.data_received(each)
        await bench.to_provider.written.wait()  # the first of an account waits for the store
        bench.provider.data_received(got)
    return bench, sent


async def measure(sizes: Sequence[int], number: int) -> list[Row]:
    """The rows of the report."""
    rows = []
    for keys in sizes:
        for accounts in dict.fromkeys((1, min(keys, 1000), keys)):
            bench, sent = await warmed(keys, accounts)
            got = [answer()]
            best = float("inf")
            for _ in range(5):
                spent = 0.0
                order = list(turns(sent, number))
                gc.collect()
                for at in range(0, number, 100):
                    began = time.process_time()
                    for each in order[at : at + 100]:
                        bench.run(each, got, 1)
                    await asyncio.sleep(0)
                    spent += time.process_time() - began
                best = min(best, spent)
            rows.append(Row(f"{keys:,} keys, {accounts:,} accounts", best / number * 1e6))
            if keys == 1:
                began = time.process_time()
                bench.run(sent[0], got, number)
                rows.append(Row("the same head", (time.process_time() - began) / number * 1e6))
            assert bench.to_client.last.startswith(b"HTTP/1.1 200 OK\r\n")
            await bench.close()
    return rows


async def profile(keys: int) -> None:
    """Print where the time goes."""
    bench, sent = await warmed(keys, keys)
    got = [answer()]
    profiler = cProfile.Profile()
    profiler.enable()
    for each in turns(sent, 20_000):
        bench.run(each, got, 1)
    profiler.disable()
    await bench.close()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(35)


def run(number: int = 20_000, sizes: Sequence[int] = SIZES) -> list[Row]:
    """The rows of the report."""
    return asyncio.run(measure(sizes, number))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Exchanges by many keys in turn.")
    parser.add_argument("--profile", type=int, metavar="KEYS")
    if keys := parser.parse_args().profile:
        asyncio.run(profile(keys))
    else:
        show("Exchange by many keys", run())
