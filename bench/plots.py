"""Plots of results as SVG: bars, written by hand.

They show what a second of CPU buys, so that longer is better and no axis has to be cut: with
microseconds for each request, the slowest would leave the others no room.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from bench import figures

if TYPE_CHECKING:
    from bench.figures import Figures

WIDTH, LABELS, ROOM = 720, 170, 150
"""Of the picture, of the names at the left, of the figures at the right."""
TOP, STEP, BAR = 58, 30, 18
NAMES = {
    "direct": "no gateway",
    "nginx": "nginx",
    "haproxy": "haproxy",
    "nginx-lua": "nginx + Lua + Redis",
    "envoy": "Envoy",
    "litellm": "LiteLLM proxy",
    "httpx": "uvicorn + httpx",
    "fastgw": "fastgw, SQLite",
    "fastgw-redis": "fastgw, Redis",
    "fastgw-compiled": "fastgw compiled, SQLite",
    "fastgw-compiled-redis": "fastgw compiled, Redis",
}
_STYLE = """<style>
text { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #3d444d; }
.paper { fill: #ffffff; } .title { font-size: 15px; font-weight: 600; fill: #1f2328; }
.note { font-size: 12px; fill: #59636e; } .bar { fill: #9aa4af; } .ours { fill: #0969da; }
.own { font-weight: 600; fill: #1f2328; } .base { stroke: #818b98; stroke-width: 1; }
@media (prefers-color-scheme: dark) {
text { fill: #c5ccd3; } .paper { fill: #0d1117; } .title, .own { fill: #f0f6fc; }
.note { fill: #9198a1; } .bar { fill: #656c76; } .ours { fill: #4493f8; }
.base { stroke: #656c76; } }
</style>"""


def bars(title: str, note: str, rows: list[tuple[str, float, str]], below: str = "") -> str:
    """A picture of horizontal bars: of each its name, its length and what stands beside it."""
    height = TOP + STEP * len(rows) + 12 + 20 * bool(below)
    most = max(value for _, value, _ in rows) or 1.0
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}"'
        f' viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">',
        _STYLE,
        f'<rect class="paper" width="{WIDTH}" height="{height}" rx="6"/>',
        f'<text class="title" x="16" y="25">{escape(title)}</text>',
        f'<text class="note" x="16" y="44">{escape(note)}</text>',
    ]
    for at, (name, value, beside) in enumerate(rows):
        top = TOP + STEP * at
        long = max(1.0, value / most * (WIDTH - LABELS - ROOM))
        ours = name.startswith("fastgw")
        middle = top + BAR - 5
        lines += [
            f'<text x="{LABELS - 10}" y="{middle}" text-anchor="end"{_OWN * ours}>'
            f"{escape(name)}</text>",
            f'<rect class="{"ours" if ours else "bar"}" x="{LABELS}" y="{top}"'
            f' width="{long:.1f}" height="{BAR}"/>',
            f'<text x="{LABELS + long + 8:.1f}" y="{middle}"{_OWN * ours}>{escape(beside)}</text>',
        ]
    end = TOP + STEP * len(rows)
    lines.append(f'<line class="base" x1="{LABELS}" y1="{TOP - 6}" x2="{LABELS}" y2="{end}"/>')
    if below:
        lines.append(f'<text class="note" x="16" y="{end + 18}">{escape(below)}</text>')
    return "\n".join([*lines, "</svg>", ""])


_OWN = ' class="own"'


def _cost(value: float) -> str:
    return f"{value:.2f} us" if value < 10 else f"{value:,.0f} us"


def _spent(title: str, unit: str, found: dict[str, Figures]) -> str:
    rows = [
        (NAMES[name], 1e6 / each.cpu_us, f"{1e6 / each.cpu_us:,.0f}  ({_cost(each.cpu_us)})")
        for name, each in found.items()
        if name != "direct" and each.cpu_us
    ]
    rows.sort(key=lambda row: -row[1])
    return bars(title, f"{unit} for a second of CPU; longer is better", rows)


def _added(title: str, found: dict[str, Figures]) -> str:
    direct = found["direct"].p50
    rows = [
        (NAMES[name], max(0.0, each.p50 - direct) * 1000, f"{(each.p50 - direct) * 1000:,.0f} us")
        for name, each in found.items()
        if name not in ("direct", "litellm", "httpx")
    ]
    rows.sort(key=lambda row: row[1])
    left = ", ".join(
        f"{NAMES[name]} {(found[name].p50 - direct) * 1000:,.0f} us"
        for name in ("httpx", "litellm")
        if name in found
    )
    note = "median of what is added to an answer's time; shorter is better"
    return bars(title, note, rows, f"too long to show: {left}" * bool(left))


def draw(results: dict[str, Any]) -> dict[str, str]:
    """SVG by file name, for the workloads that the results have."""
    found = figures.all_of(results)
    titles = {
        "w1": ("JSON requests", "requests"),
        "w2": ("Events of fast streams", "events"),
        "w3": ("Events of 1,000 slow streams", "events"),
    }
    pictures = {
        f"{name}.svg": _spent(title, unit, found[name])
        for name, (title, unit) in titles.items()
        if found.get(name)
    }
    if "direct" in found.get("w4", {}):
        pictures["w4.svg"] = _added("Latency of one connection", found["w4"])
    return pictures
