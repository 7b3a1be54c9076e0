"""HTTP/1.1 heads and bodies, bytes in and values out: no socket, no clock, no event loop.

`request` and `response` read heads (httptools judges the grammar, our checks close what it leaves
open), `body` reads chunked bodies, `serialize` writes heads, `headers` holds the names both share.
"""
