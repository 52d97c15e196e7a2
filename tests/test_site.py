"""The documents as a site: all pages are in its contents, and messages that a page explains are the programs' own."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def test_every_page_is_in_the_contents_once():
    def pages(entry):
        if isinstance(entry, str):
            return [entry]
        return [page for each in (entry.values() if isinstance(entry, dict) else entry) for page in pages(each)]

    listed = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    made = {"index.md", "api.md", "changelog.md", "contributing.md"}
    there = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert sorted(listed) == sorted(there | made)


def test_modules_of_the_api_reference_are_there():
    named = re.findall(
        r'"([a-z_.]+)"', (ROOT / "docs/site_pages.py").read_text(encoding="utf-8").split("API = ")[1].split("}")[0]
    )
    missing = [n for n in named if not (ROOT / "latentvid" / f"{n.replace('.', '/')}.py").exists()]
    assert len(named) > 15 and not missing


def test_messages_that_are_explained_are_said():
    """Each in the table by message; its `...` stand for what a message fills in."""
    sources = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "latentvid").rglob("*.py")))
    said = re.sub(r'"\s*(?:if [^"\n]*)?\n\s*f?"', "", sources)
    table = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8").split("## By message")[1]
    messages = re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)
    parts = [part.strip(" ():") for message in messages for part in message.split("...") if len(part.strip(" ():")) > 3]
    assert len(messages) > 8 and [part for part in parts if part not in said] == []


def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("mkdocstrings")
    commands = pytest.importorskip("mkdocs.commands.build")
    from mkdocs.config import load_config

    commands.build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True))
    home = (tmp_path / "site/index.html").read_text(encoding="utf-8")
    assert "Two commands" in home and "samples.gif" in home and not re.search(r'(src|href)="https?://fonts', home)
    assert "VideoDiT" in (tmp_path / "site/api/index.html").read_text(encoding="utf-8")
