"""A self-contained HTML page: its frame and style, what it embeds, and small pieces to put into it."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

KINDS = {".png": "image/png", ".mp4": "video/mp4"}
LIMIT = 100_000_000  # bytes


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """Rows of HTML cells, the first of each a heading; "" where there are no rows."""
    rows = list(rows)
    if not rows:
        return ""
    top = f"<thead><tr><th>{head[0]}</th>{''.join(f'<td>{cell}</td>' for cell in head[1:])}</tr></thead>"
    body = "".join(f"<tr><th>{first}</th>{''.join(f'<td>{c}</td>' for c in cells)}</tr>" for first, *cells in rows)
    return f'<div class="scroll"><table class="{kind}">{top if any(head) else ""}<tbody>{body}</tbody></table></div>'


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


class Page:
    """One page as it grows: what it has embedded, against its limit, and its groups of tabs.

    limit: bytes that embedded files may take up; what goes beyond is left out by `offer`.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self.size = 0
        self._groups = 0

    def offer(self, path: Path) -> str | None:
        """The file (.png, .mp4) as a data URI, where the page still has room for it."""
        if self.size + _encoded(path) > self.limit:
            return None
        return self.embed(path)

    def embed(self, path: Path) -> str:
        """The file as a data URI, whether or not there is room."""
        self.size += _encoded(path)
        return f"data:{KINDS[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"

    def tabs(self, panes: Sequence[tuple[str, str]], chosen: int = 0) -> str:
        """One pane (title, HTML) at a time. Radio buttons and CSS: the arrow keys go from one to the next."""
        if len(panes) == 1:
            return panes[0][1]
        self._groups += 1
        parts = []
        for i, (title, content) in enumerate(panes):
            name, ticked = f"tabs{self._groups}", " checked" * (i == chosen)
            parts.append(
                f'<input type="radio" name="{name}" id="{name}-{i}"{ticked}>'
                f'<label for="{name}-{i}">{escape(title)}</label><div class="pane">{content}</div>'
            )
        return f'<div class="tabs">{"".join(parts)}</div>'

    def html(self, title: str, lead: str, parts: Sequence[tuple[str, Sequence[tuple[str, str]]]], foot: str) -> str:
        """The whole page. parts: (heading, or "" for none, and sections as (title, HTML)). lead, foot: plain text."""
        body, links = [], []
        for i, (heading, sections) in enumerate(parts):
            level, inside = (3 if heading else 2), []
            for j, (name, content) in enumerate(sections):
                if content:
                    top = f"<h{level}>{escape(name)}</h{level}>" if name else ""
                    inside.append(f'<section id="s{i}-{j}">{top}\n{content}\n</section>')
            if heading:
                body.append(f'<article id="p{i}"><h2 class="part">{escape(heading)}</h2>{"".join(inside)}</article>')
                links.append((f"p{i}", heading))
            else:
                body += inside
                links += [(f"s{i}-{j}", name) for j, (name, content) in enumerate(sections) if content]
        nav = "".join(f'<a href="#{target}">{escape(name)}</a>' for target, name in links)
        return PAGE.format(
            style=STYLE, title=escape(title), lead=escape(lead), nav=nav, body="\n".join(body), foot=escape(foot)
        )


def _encoded(path: Path) -> int:
    """Bytes of the file in base64."""
    return (path.stat().st_size + 2) // 3 * 4


STYLE = """
:root { color-scheme: light dark; --ink: #1c1f26; --dim: #626978; --page: #fbfbfc; --card: #fff; --line: #e2e5ea;
  --good: #1a7f37; --fair: #9a6700; --poor: #c4282d; --rest: #dfe3e9;
  --c0: #2563d9; --c1: #d9730d; --c2: #1a8f4c; --c3: #b5379b; --c4: #0b8a94; --c5: #8a7300; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ec; --dim: #98a0af; --page: #14161a; --card: #1c1f25;
  --line: #30353e; --good: #4ac26b; --fair: #d9a441; --poor: #f2706b; --rest: #3a404a;
  --c0: #6ea0ff; --c1: #f0a04b; --c2: #52c77e; --c3: #e37fd0; --c4: #4cc3cc; --c5: #d6c04a; } }
body { margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 1080px; box-sizing: border-box; color: var(--ink);
  background: var(--page); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; } h3 { font-size: 1.05rem; margin: 1.8rem 0 .6rem; }
h4 { font-size: .93rem; margin: 1.2rem 0 .5rem; }
.part { font-size: 1.5rem; margin-top: 3.2rem; padding-top: 1rem; border-top: 2px solid var(--line); }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin-top: .8rem; font-size: .9rem; }
a { color: var(--c0); } nav a { text-decoration: none; } nav a:hover { text-decoration: underline; }
footer { margin-top: 3rem; color: var(--dim); font-size: .85rem; } .dim, .note { color: var(--dim); }
.note { border-left: 3px solid var(--line); padding-left: .8rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .34rem .6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: baseline; }
th { text-align: left; font-weight: 600; } th .dim { font-weight: 400; margin-left: .7rem; }
td .dim { font-size: .87rem; } .scored td .dim { display: block; }
.scroll + .scroll { margin-top: 1rem; }
thead th, thead td { color: var(--dim); font-size: .87rem; font-weight: 400; }
.facts { width: auto; min-width: min(30rem, 100%); }
.words td { text-align: left; overflow-wrap: anywhere; } .words th { white-space: nowrap; }
.good { color: var(--good); } .fair { color: var(--fair); } .poor { color: var(--poor); }
.bar { display: inline-block; height: .7em; min-width: 1px; background: var(--c0); border-radius: 2px; }
.barred td:last-child { text-align: left; width: 34%; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(216px, 1fr)); gap: 14px; }
.cards figure { margin: 0; padding: 10px; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  display: grid; grid-template-rows: auto 1fr; justify-items: center; align-items: center; }
.cards figcaption { width: 100%; align-self: start; padding-top: 8px; font-size: .87rem; line-height: 1.35; }
.demo figure { grid-template-rows: minmax(192px, auto) 1fr; }
.read { display: block; margin-top: 3px; font-size: .8rem; } .read span { white-space: nowrap; margin-right: .3em; }
video { background: #000; border-radius: 3px; max-width: 100%; } .small { image-rendering: pixelated; }
.wide { max-width: 100%; border-radius: 8px; display: block; }
.beside { display: grid; grid-auto-columns: minmax(0, 1fr); grid-auto-flow: column; gap: 18px; }
.clip { width: 100%; border-radius: 3px; }
.beside .cards { grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); }
.tabs { display: flex; flex-wrap: wrap; gap: 4px; margin-top: .8rem; }
.tabs > input { position: absolute; opacity: 0; pointer-events: none; }
.tabs > label { padding: .15rem .6rem; border: 1px solid var(--line); border-radius: 6px; background: var(--card);
  font-size: .85rem; cursor: pointer; color: var(--dim); font-variant-numeric: tabular-nums; }
.tabs > input:checked + label { color: var(--page); background: var(--c0); border-color: var(--c0); }
.tabs > input:focus-visible + label { outline: 2px solid var(--c1); outline-offset: 1px; }
.pane { display: none; order: 1; width: 100%; } .tabs > input:checked + label + .pane { display: block; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(400px, 100%), 1fr)); gap: 14px;
  margin-top: .8rem; }
.chart { margin: 0; padding: 10px 6px 2px; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  display: flex; flex-direction: column; justify-content: space-between; }
.chart figcaption { padding: 0 6px 4px; font-size: .82rem; line-height: 1.6; } .chart b { margin-right: .9em; }
.key { color: var(--dim); white-space: nowrap; margin-right: .9em; }
.key i { display: inline-block; width: 20px; border-top: 2.5px solid var(--c); margin-right: 5px;
  vertical-align: 3.5px; }
.key .raw { border-top-width: 1px; opacity: .6; } .key .dashed { border-top-style: dashed; }
.key .band { height: 9px; width: 12px; border: 0; background: var(--c); vertical-align: -1px; border-radius: 2px; }
svg { width: 100%; display: block; } svg text { fill: var(--dim); font-size: 11.5px; }
svg .grid { stroke: var(--line); }
polyline { fill: none; stroke: var(--c); stroke-width: 1.8; stroke-linejoin: round; } circle { fill: var(--c); }
polyline.raw { stroke-width: 1; opacity: .35; } polyline.mean { stroke-width: 2.2; }
polyline.dashed { stroke-dasharray: 5 4; } .span { stroke: var(--c); opacity: .55; stroke-width: 1.6; }
polygon { opacity: .85; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem; overflow-x: auto;
  font-size: .85rem; line-height: 1.45; } summary { cursor: pointer; padding: .2rem 0; }
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head><body>
<h1>{title}</h1>
<p class="dim">{lead}</p>
<nav>{nav}</nav>
{body}
<footer>{foot}</footer>
</body></html>
"""
