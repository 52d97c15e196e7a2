"""Near-duplicates by features: against looking at all pairs, and in a curation, of what hashes keep apart."""

import base64

import numpy as np
import pyarrow.parquet
import pytest
import torch
from curated_footage import in_a_loop, shot, write

from latentvid.curation import features
from latentvid.curation.features import closest, read_features
from latentvid.curation.run import curate
from latentvid.curation.settings import Captions, Curation, Duplicates, Measures, Segments, Shots


def test_the_nearest_that_stays_is_named_as_looking_at_all_pairs_finds_it(monkeypatch):
    monkeypatch.setattr(features, "ROWS", 7)
    draw = np.random.default_rng(0)
    base = draw.normal(size=(12, 8))
    rows = np.concatenate(
        [base, base[::2] + 0.2 * draw.normal(size=(6, 8)), base[::3] + 0.1 * draw.normal(size=(4, 8))]
    )
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    shots = [*range(14), 4, *range(15, 22)]  # a copy of the fifth is of its own shot
    want = list(range(len(rows)))
    for b in range(len(rows)):
        near = [a for a in range(b) if want[a] == a and shots[a] != shots[b] and rows[a] @ rows[b] >= 0.9]
        want[b] = max(near, key=lambda a: rows[a] @ rows[b], default=b)
    assert closest(rows, shots, 0.9) == want and sum(n != first for n, first in enumerate(want)) == 9


class Colours:
    """In the place of CLIP: a picture's mean colours, which turning it upside down does not change."""

    def images(self, pixels: torch.Tensor) -> torch.Tensor:
        found = pixels.double().mean(dim=(1, 2)) - 127
        return torch.nn.functional.normalize(found, dim=-1)


def test_a_curation_drops_what_features_say_is_the_same_and_goes_on_from_its_notes(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "open_clip", lambda weights, device: Colours())
    dark = np.clip(shot(1, 9).astype(int) // 3, 0, 255).astype(np.uint8)
    write(tmp_path / "in" / "a.mp4", dark)
    write(tmp_path / "in" / "b.mp4", dark[:, ::-1])
    write(tmp_path / "in" / "c.mp4", np.clip(shot(5, 9).astype(int) // 3 + [0, 60, 170], 0, 255).astype(np.uint8))
    usual = {
        "shots": Shots(detector="none"),
        "segments": Segments(min_frames=5, max_frames=9),
        "captions": Captions(template="a clip of {stem}"),
        "measures": Measures(weights=tmp_path / "weights"),
    }

    def dropped(loop, **more) -> dict[str, str]:
        curate(Curation(**usual, duplicates=Duplicates(**more)), tmp_path / "in", tmp_path / "out", loop)
        rows = pyarrow.parquet.read_table(tmp_path / "out" / "segments.parquet").to_pylist()
        return {row["source"]: row["duplicate_of"] for row in rows if row["dropped"] == "duplicate"}

    assert dropped(in_a_loop()) == {}
    loop = in_a_loop()
    assert dropped(loop, similarity=0.99) == {"b.mp4": "a.mp4"} and loop.loop.done == 3
    assert dropped(loop, similarity=0.99) == {"b.mp4": "a.mp4"} and loop.loop.done == 3
    table = pyarrow.parquet.read_schema(tmp_path / "out" / "segments.parquet")
    assert "features" not in table.names


def test_features_are_read_as_written_and_need_weights():
    rows = np.eye(3, dtype=np.float16)[:2] * 2
    assert read_features([base64.b64encode(row.tobytes()).decode() for row in rows]).tolist() == np.eye(3)[:2].tolist()
    with pytest.raises(ValueError, match="give measures.weights"):
        Curation(duplicates=Duplicates(similarity=0.9))
