"""The page of a data set: thresholds with what lies at them, drops, captions, and the windows that training sees."""

import re
import runpy
import sys

import numpy as np
import pyarrow
import pytest
from curated_footage import in_a_loop, shot, write

from latentvid.curation.run import curate
from latentvid.curation.settings import Captions, Curation, Measures, Segments, Shots, Split
from latentvid.data.manifest.manifest import read_manifest
from latentvid.data.windows import Transform
from latentvid.report.dataset import Dataset, histogram, nearest_rows
from latentvid.report.pages import write_dataset_report

SEEN = Transform(spatial_stride=16, temporal_stride=4, max_frames=9, max_area=48 * 48, crop=32)


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    for n in range(4):
        write(folder / "in" / f"{n}.mp4", shot(n, 13, step=n))
    write(folder / "in" / "copy.mp4", shot(1, 13, step=1), crf=30)
    (folder / "in" / "bad<b>.mp4").write_bytes(b"x")
    settings = Curation(
        shots=Shots(detector="none"),
        segments=Segments(min_frames=5, max_frames=13),
        measures=Measures(area=5000),
        captions=Captions(template="<i>{stem}</i> moves & moves"),
        filters=("motion > 1", "blur < 2"),
        split=Split(validation=0.0),
    )
    curate(settings, folder / "in", folder / "out", in_a_loop())
    return folder / "out"


def test_the_page_of_a_curation_shows_what_was_measured_kept_and_dropped(curated):
    page = write_dataset_report(curated, None, SEEN).read_text()
    assert "cannot be shown" not in page
    for heading in ("Summary", "Dropped", "Measures", "At the thresholds", "Captions", "What training sees"):
        assert f"<h2>{heading}</h2>" in page
    assert "motion &gt; 1" in page and "duplicate" in page and "unreadable" in page
    assert "motion &gt; 1, just kept" in page and "motion &gt; 1, just dropped" in page
    assert "blur &lt; 2, just kept" in page and "blur &lt; 2, just dropped" not in page
    assert (
        "<i>" not in page.split("</style>")[1].replace('<i class="', "") and "&lt;i&gt;2&lt;/i&gt; moves &amp;" in page
    )
    assert "9 x 32 x 48" in page and "validation.parquet" in page  # which is empty, and said to be
    assert len(re.findall('<img class="sheet" src="data:image/png', page)) == 4


def test_the_page_of_a_plain_manifest_has_no_thresholds(curated, tmp_path, monkeypatch, capsys):
    out = tmp_path / "page.html"
    words = ["report", str(curated / "train.parquet"), "--out", str(out), "--max-frames", "5"]
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_module("latentvid.report", run_name="__main__")
    assert capsys.readouterr().out.strip() == str(out)
    page = out.read_text()
    assert "cannot be shown" not in page and "just kept" not in page and "5 x 64 x 96" in page
    assert str(len(read_manifest(curated / "train.parquet").samples)) in page


def test_what_is_nearest_to_a_threshold_is_shown_first(curated):
    settings = Curation(filters=("motion > 2",))
    motion = [1.0, 1.9, 2.1, 5.0, 2.05, None, 0.0, 1.95]
    dropped = ["motion > 2" if value is None or value <= 2 else "" for value in motion]
    dropped[6] = "duplicate"
    data = Dataset(curated, pyarrow.table({"motion": motion, "dropped": dropped}), settings, None)
    (each,) = settings.parsed
    kept, out = nearest_rows(data, each, each.bounds()[0])
    assert kept.tolist() == [4, 2, 3] and out.tolist() == [7, 1, 0]


def test_a_histogram_counts_all_and_the_kept():
    values, kept = np.array([0.0, 1.0, 1.0, 4.0, np.nan]), np.array([True, True, False, True, True])
    page = histogram("x", "x", values, kept, [(3.0, "> 3")])
    assert "&gt; 3" in page and page.count("polyline") == 2
    assert histogram("x", "x", np.full(3, np.nan), np.ones(3, bool)) == ""
