"""The studio in a browser, by clicks: a prompt becomes a clip in the gallery, and what is hostile stays text."""

import sys

import pytest
import torch
from browser import browser
from studios import press, put, served, studio, turn_to, write

from latentvid.studio.jobs import Worker

HOSTILE = "<img src=x onerror=document.title='hacked'> [a](javascript:alert(1)) **b**"
REPEAT = """
import json, sys
for line in sys.stdin:
    print(json.dumps({"text": "error: " + " ".join(json.loads(line))}), flush=True)
    print(json.dumps({"end": 2}), flush=True)
"""


def test_a_hostile_prompt_is_text_everywhere(tmp_path):
    """In a program's words, the gallery, its captions, and the names of runs. The program only repeats its options, so
    that nothing heavy is loaded."""
    pytest.importorskip("gradio")
    own = studio(tmp_path, HOSTILE)
    own.worker = Worker([sys.executable, "-c", REPEAT])
    put(own.gallery, torch.zeros(2, 16, 16, 3, dtype=torch.uint8), prompt=HOSTILE, seed=7)
    run = tmp_path / "runs" / "<img src=x onerror=document.title=1>"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.4}\n')
    with served(own) as address, browser(tmp_path / "browser") as page:
        page.view(1280, 900)
        page.visit(address)
        write(page, "t2v-prompt", HOSTILE)
        press(page, "#make-t2v")
        page.wait("document.querySelector('#said-t2v').innerText.includes('onerror')")
        assert HOSTILE in page.run("document.querySelector('#said-t2v').innerText")
        turn_to(page, "Gallery")
        page.wait("document.querySelector('#made .caption-label')?.innerText.includes('onerror')")
        press(page, "#made .thumbnail-item")
        page.wait("document.querySelector('#facts textarea').value.includes('seed: 7')")
        assert HOSTILE in page.run("document.querySelector('#facts textarea').value")
        turn_to(page, "Runs")
        page.wait("document.querySelector('#run-page iframe')")
        assert "onerror" in page.run("document.querySelector('#runs').innerText")
        images = page.run("[...document.images].map(e => e.getAttribute('src'))")
        assert "x" not in images and page.run("document.title") == "latentvid studio"
        asked = page.run("performance.getEntriesByType('resource').map(e => e.name)")
        assert asked and [url for url in asked if not url.startswith((address, "blob:", "data:"))] == []
