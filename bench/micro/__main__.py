"""All micro benchmarks: `make micro`."""

from __future__ import annotations

from bench.micro import exchange, head, heads, ledger, many, meter, tokens
from bench.micro.timing import show

show("Request head of the OpenAI SDK", head.run())
show("Response head of a big provider, 14 fields", heads.run())
show("Meter", meter.run())
show("Counting", tokens.run())
show("Ledger", ledger.run())
show("Exchange, without loop and kernel", exchange.run())
show("Exchange by keys in turn", many.run(sizes=(1, 1_000)))
