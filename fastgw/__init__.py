"""fastgw: an LLM gateway that keeps virtual keys, exact token budgets and streams.

One request, from end to end (read `exchange` first):

    downstream/   a client connection turns bytes into a request head      http1/request
    plan          who sent it (keyring) and where it goes (policy/routing)
    exchange      the body is read: model, stream, usage asked for         usage/request
    policy/       the ledger lets it in or refuses it                      ledger, window
    upstream/     a connection of the provider's pool takes it             pool, connection
    relay         the answer passes as it comes, the meter looks on        usage/meter, sse
    settlement    what it cost goes to the store, in batches               store/
    recorder      metrics and access log                                   metrics, access_log

Floors: a module imports lower floors only (tests/test_structure.py).

    7 process       cli, __main__, service, worker; supervisor, member, child
    6 surfaces      admin/, demo/
    5 engine        engine, exchange, plan, relay, keyring, settlement, recorder, reports, audit
    4 I/O           downstream/, upstream/, store/, flow_control, control
    3 policy        policy/: decisions without I/O or clock
    2 wire          http1/, sse, skeleton, usage/: bytes and meaning, without I/O
    1 declarations  config/, metrics, exposition, access_log
    0 ground        model, errors, clock, money, tasks, systemd, compiled
"""

__version__ = "0.1.0"
