"""What tests of HTML pages share: a parser that fails on tags that do not match."""

import re
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "img", "line", "polyline", "input", "br"}


class Html(HTMLParser):
    """Fails on tags that do not match; collects elements, text, and the text of table rows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.feed(text)
        assert not self.open

    @classmethod
    def of(cls, path: Path) -> "Html":
        """A page that needs nothing but itself."""
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:|#)|url\(|@import|<script|<link", text)
        page = cls(text)
        names = [attrs["id"] for _, attrs in page.found if "id" in attrs]
        assert len(set(names)) == len(names)
        targets = {attrs["href"][1:] for attrs in page.all("a")} | {attrs["for"] for attrs in page.all("label")}
        assert targets <= set(names)
        return page

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.found if name == tag]

    def notes(self) -> int:
        return sum(attrs.get("class") == "note" for _, attrs in self.found)

    def row(self, first: str) -> list[str]:
        """The cells of the row whose first begins so."""
        return next(row[1:] for row in self.rows if row and row[0].startswith(first))
