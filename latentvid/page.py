"""The frame and style of the demo's report, a self-contained HTML page, and small pieces to put into it."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def data_uri(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


STYLE = """
:root { color-scheme: light dark; --ink: #1c1f26; --dim: #6a7180; --page: #fbfbfc; --card: #fff; --line: #e2e5ea;
  --good: #1a7f37; --fair: #9a6700; --poor: #c4282d; --blue: #2563d9; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ec; --dim: #949cab; --page: #14161a; --card: #1c1f25;
  --line: #30353e; --good: #4ac26b; --fair: #d9a441; --poor: #f2706b; --blue: #6ea0ff; } }
body { margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 1000px; box-sizing: border-box; color: var(--ink);
  background: var(--page); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; } h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .6rem; } .dim, .note { color: var(--dim); }
.note { border-left: 3px solid var(--line); padding-left: .8rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem .6rem; border-bottom: 1px solid var(--line); text-align: right; }
th { text-align: left; font-weight: 600; } th .dim { font-weight: 400; margin-left: .7rem; }
thead td { color: var(--dim); font-size: .87rem; }
.good { color: var(--good); } .fair { color: var(--fair); } .poor { color: var(--poor); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(216px, 1fr)); gap: 14px; }
figure { margin: 0; padding: 10px; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  display: grid; grid-template-rows: minmax(192px, auto) 1fr; justify-items: center; align-items: center; }
figcaption { width: 100%; align-self: start; padding-top: 8px; font-size: .87rem; line-height: 1.35; }
.read { display: block; margin-top: 3px; font-size: .8rem; } .read span { white-space: nowrap; margin-right: .3em; }
video { image-rendering: pixelated; background: #000; border-radius: 3px; }
.wide { max-width: 100%; border-radius: 8px; display: block; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(380px, 1fr)); gap: 14px; margin-top: 1.2rem; }
svg { background: var(--card); border: 1px solid var(--line); border-radius: 8px; width: 100%; box-sizing: border-box; }
svg text { fill: var(--dim); font-size: 11.5px; } svg .title { fill: var(--ink); font-size: 13px; font-weight: 600; }
svg .grid { stroke: var(--line); } .raw, .mean { fill: none; stroke: var(--blue); stroke-linejoin: round; }
.raw { stroke-width: 1; opacity: .35; } .mean { stroke-width: 2.4; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem; overflow-x: auto;
  font-size: .85rem; line-height: 1.45; } summary { cursor: pointer; padding: .2rem 0; }
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>latentvid: the demo's report</title><style>{style}</style></head><body>
<h1>From captions to clips</h1>
<p class="dim">A text-to-video model trained from nothing by latentvid: a causal video autoencoder, a small T5 and a
diffusion transformer, on coloured handwritten digits that move and bounce.</p>
{body}
</body></html>
"""
