"""Scores of each clip in scores.json, the page of the best and worst, and what says how far a run is."""

import base64
import json
import re
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latentvid.data.video.reading import read_frames
from latentvid.data.video.writing import write_video
from latentvid.evaluation import row_cache
from latentvid.evaluation.clip_folder import Item, list_clips
from latentvid.evaluation.extremes import extremes, write_page
from latentvid.evaluation.footage import Cut, Excerpt
from latentvid.evaluation.mean_score import MeanScore
from latentvid.evaluation.row_cache import RowCache
from latentvid.evaluation.scoring import ScoringConfig, score_clips

CUT = Cut(frames=4, size=None, temporal_stride=1, spatial_stride=1)
DARK = MeanScore(name="dark", extractor="x", compares="none", better="lower")
FLICKERS = (5, 60, 20, 40)  # levels by which clip k's frames differ


@pytest.fixture
def folder(tmp_path) -> Path:
    for k, step in enumerate(FLICKERS):
        frames = torch.arange(4)[:, None, None, None] % 2 * step + torch.full((4, 12, 17, 3), 90)
        write_video(tmp_path / "clips" / f"{k}.gif", frames.byte(), 8)
        (tmp_path / "clips" / f"{k}.txt").write_text(f"<clip> {k}")
    return tmp_path / "clips"


def items(count: int) -> list[Item]:
    return [Item(f"{k}.mp4", Excerpt(Path(f"{k}.mp4"), 0, 4, 12, 16, 8.0)) for k in range(count)]


def test_the_outermost_come_first_and_none_is_in_both():
    values = {item: {"dark": float(value)} for item, value in zip(items(5), (3, 1, 5, 2, 4), strict=True)}
    names = lambda each: [item.name for item in each]  # noqa: E731
    first, last = extremes(values, "dark", 2, higher_first=False)
    assert (names(first), names(last)) == (["1.mp4", "3.mp4"], ["2.mp4", "4.mp4"])
    first, last = extremes(values, "dark", 9, higher_first=True)
    assert (names(first), names(last)) == (["2.mp4", "4.mp4"], ["1.mp4", "3.mp4"])  # not the middle one twice
    del values[items(5)[0]]["dark"]  # a clip without it
    assert len(extremes(values, "dark", 9, higher_first=True)[0]) == 2
    assert extremes(dict(list(values.items())[1:2]), "dark", 3, higher_first=True) == ([items(5)[1]], [])


def test_each_clips_scores_are_written_and_the_page_shows_both_ends(folder, tmp_path, fresh_accelerate, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    out = tmp_path / "out"
    config = ScoringConfig(clips=folder, metrics=["flicker"], resamples=0, shown=1, out=out)
    scored = score_clips(config)
    kept = json.loads((out / "scores.json").read_text())["clips"]
    assert [Path(row["file"]).name for row in kept] == ["0.gif", "1.gif", "2.gif", "3.gif"]
    assert [row["scores"]["flicker"] for row in kept] == pytest.approx(FLICKERS, abs=1)
    rest = {name: value for name, value in kept[1].items() if name not in ("file", "scores")}
    assert rest == {"start": 0, "frames": 4, "caption": "<clip> 1", "seed": None, "influence": {}}
    values = [row["scores"]["flicker"] for row in kept]
    assert scored.results["flicker"].value == pytest.approx(sum(values) / 4)
    page = (out / "clips.html").read_text()
    assert page.count("<video") == 2 and page.index("Best") < page.index("0.gif") < page.index("Worst")
    assert page.index("Worst") < page.index("1.gif") and "2.gif" not in page
    assert "&lt;clip&gt; 1" in page and "1 of each end, of 4 clips" in page
    (out / "clips.html").unlink()
    score_clips(replace(config, shown=0))
    assert not (out / "clips.html").exists()


def test_a_page_has_a_tab_a_score_and_leaves_out_what_has_no_room(folder, tmp_path):
    clips = list_clips(folder, CUT).items
    values = {item: {"dark": float(k), "wide": float(-k)} for k, item in enumerate(clips)}
    wide = MeanScore(name="wide", extractor="x", compares="none", better="neither")
    none = MeanScore(name="none", extractor="x", compares="none", better="lower")
    (folder / "3.gif").unlink()  # it went away
    write_page(tmp_path / "page.html", values, [DARK, wide, none], 1)
    page = (tmp_path / "page.html").read_text()
    assert page.count('type="radio"') == 2 and "Highest" in page and "cannot be read any more" in page
    write_page(tmp_path / "small.html", values, [DARK], 1, limit=10)
    assert "left out, to hold the page to" in (tmp_path / "small.html").read_text()


def test_clips_have_an_influence_on_scores_of_sets(tmp_path, fresh_accelerate, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    for name, shift in (("made", 0), ("real", 3)):
        for k in range(6):
            bright = 240 if (name, k) == ("made", 4) else 90 + shift + 5 * k  # one unlike all others
            frames = torch.full((2, 12, 16, 3), bright)
            frames[1, 6:] += 1 + k  # another last frame
            write_video(tmp_path / name / f"{k}.gif", frames.byte(), 8)
    config = {"metrics": ["own_scores:colours"], "resamples": 0, "shown": 1, "out": tmp_path / "out"}
    score_clips(ScoringConfig(clips=tmp_path / "made", real=tmp_path / "real", **config))
    kept = json.loads((tmp_path / "out" / "scores.json").read_text())["clips"]
    found = [row["influence"]["colours"] for row in kept]
    assert found[4] > 0 > max(found[:4] + found[5:])  # without it the sets would be closer
    page = (tmp_path / "out" / "clips.html").read_text()
    assert page.index("Worst") < page.index("4.gif") and "counted once more" in page


def test_large_clips_are_shown_smaller_with_sides_that_browsers_play(tmp_path):
    write_video(tmp_path / "a.gif", torch.arange(3)[:, None, None, None].expand(3, 301, 401, 3).mul(60).byte(), 8)
    (item,) = list_clips(tmp_path, CUT).items
    write_page(tmp_path / "page.html", {item: {"dark": 1.0}}, [DARK], 2)
    film = re.search(r'src="data:video/mp4;base64,([^"]+)"', (tmp_path / "page.html").read_text())[1]
    (tmp_path / "shown.mp4").write_bytes(base64.b64decode(film))
    assert read_frames(tmp_path / "shown.mp4").shape == (3, 256, 340, 3)


def test_where_there_is_no_terminal_lines_say_how_many_clips_are_done(folder, tmp_path, monkeypatch):
    said = []

    @contextmanager
    def phase(what, total):
        said.append((what, total))
        yield lambda: said.append("one more")

    class Means:
        name, fingerprint, needs = "means", "means", frozenset()

        def __call__(self, clip):
            return clip.pixels.float().mean().view(1, 1)

    monkeypatch.setattr(row_cache, "phase", phase)
    cache = RowCache(tmp_path / "rows", list_clips(folder, CUT).items, {"means": Means()})
    cache.fill(cache.missing(), label="clips")
    assert said == [("clips", 4), *["one more"] * 4]
