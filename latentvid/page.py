"""A self-contained HTML page: its frame and style, what it embeds, and small pieces to put into it."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

STYLE = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
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


def facts(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table of facts: those of one thing in as many columns as there is room for, of several things beside each
    other."""
    rows = list(rows)
    pairs = " pairs" if all(len(row) == 2 for row in rows) else ""
    return table(head, rows, f"facts{pairs} {kind}".strip())


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
