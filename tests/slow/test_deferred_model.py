"""A new model under FSDP2: no process ever holds the whole, and all weights are those of one that is built whole."""

import json
from pathlib import Path

from launching import launch

PROBE = Path(__file__).parent / "deferred_probe.py"
MODEL = ("model={patch: 2, width: 640, depth: 10, heads: 8}", "samples.every=0", "validation.every=0")


def rows(recipe: str, processes: int, demo, folder: Path) -> list[dict]:
    folder.mkdir()
    path = demo(folder.with_name(f"run-{folder.name}"), *MODEL)
    launch(recipe, processes, [PROBE, folder, path], timeout=1800, MALLOC_MMAP_THRESHOLD_="65536")
    return [json.loads(file.read_text()) for file in sorted(folder.iterdir())]


def test_each_process_makes_its_own_part_alone(demo, tmp_path):
    found = rows("fsdp2", 2, demo, tmp_path / "two")
    assert len(found) == 2 and sum(row["mine"] for row in found) == found[0]["whole"]
    for row in found:
        assert row["equal"] and row["known"]
        assert row["mine"] < 0.52 * row["whole"] and row["grew"] < 0.75 * row["whole"], row


def test_copies_of_shards_are_made_so_too(demo, tmp_path):
    found = rows("hsdp", 4, demo, tmp_path / "four")
    assert len(found) == 4 and all(row["equal"] and row["known"] for row in found)
    assert sum(row["mine"] for row in found) == 2 * found[0]["whole"]


def test_one_process_holds_it_whole(demo, tmp_path):
    (row,) = rows("single", 1, demo, tmp_path / "one")
    assert row["equal"] and row["grew"] > 0.95 * row["whole"]  # which is what the other tests' figure would be
