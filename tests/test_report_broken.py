"""A page of a broken run folder shows what is whole, says what is not, and never raises or hangs."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pages import Html
from test_report_runs import make_run

from latentvid.report.pages import write_report
from latentvid.report.reading import Faults, read_columns

FILES = ("config.yaml", "metrics.jsonl", "validation.jsonl", "best.json", "run.json", "evaluation/scores.json")
DAMAGES: dict[str, Callable[[Path, bytes], object]] = {
    "missing": lambda path, _: None,
    "empty": lambda path, _: path.touch(),
    "truncated": lambda path, was: path.write_bytes(was[: len(was) // 2 + 1]),
    "binary": lambda path, _: path.write_bytes(bytes(range(256)) * 8),
    "a folder": lambda path, _: path.mkdir(),
    "a pipe": lambda path, _: os.mkfifo(path),
    "a link out": lambda path, _: path.symlink_to("/etc/passwd"),
    "a link to nothing": lambda path, _: path.symlink_to("nothing"),
    "a list": lambda path, _: path.write_text("[1, 2]\n"),
    "a number": lambda path, _: path.write_text("7\n"),
    "null": lambda path, _: path.write_text("null\n"),
    "nested": lambda path, _: path.write_text("[" * 2_000),
    "one long line": lambda path, _: path.write_bytes(b"x" * 3_000_000),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("sound") / "run")


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_file_may_be_anything(damage, sound, tmp_path):
    for half in (0, 1):
        run = shutil.copytree(sound, tmp_path / str(half))
        for name in FILES[half::2]:
            was = (run / name).read_bytes()
            (run / name).unlink()
            DAMAGES[damage](run / name, was)
        text = Html.of(write_report([run])).text
        assert "How to repeat" in text and "cannot be shown" not in text
        silent = {"missing": FILES, "truncated": [name for name in FILES if not name.endswith(".json")]}.get(damage, ())
        for name in FILES[half::2]:
            assert name in silent or f"{name}: " in text, name


VALUES = [None, "x", -1, 2.5, 10**30, 1e308, float("nan"), float("inf"), True, [], {}, [[]], {"a": {"b": []}}]


def spoilt(found, value, seen: list[int], wanted: int):
    """`found` with the value instead of its `wanted`-th part; `seen` counts them."""
    seen[0] += 1
    if seen[0] == wanted:
        return value
    if isinstance(found, dict):
        return {key: spoilt(inner, value, seen, wanted) for key, inner in found.items()}
    return [spoilt(inner, value, seen, wanted) for inner in found] if isinstance(found, list) else found


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "validation.jsonl", "best.json", "run.json", "evaluation/scores.json"]
)
def test_every_part_may_be_of_any_type(name, sound, tmp_path):
    """A value after the other instead of each part of a file; all of a page's tables and charts are made."""
    run = shutil.copytree(sound, tmp_path / "run")
    lines = (run / name).read_text().splitlines() if name.endswith("jsonl") else [(run / name).read_text()]
    first = json.loads(lines[0])
    count = [0]
    spoilt(first, None, count, 0)
    for part in range(1, count[0] + 1, 1 + count[0] // 6):
        value = VALUES[part % len(VALUES)]
        text = json.dumps(spoilt(first, value, [0], part))
        (run / name).write_text("\n".join([text, *lines[1:]]) + "\n")
        text = Html.of(write_report([run])).text
        assert "cannot be shown" not in text, (part, value)


@pytest.mark.parametrize(
    "change",
    [
        {"train": 5},
        {"train": {"steps": []}},
        {"samples": {"prompts": 7}},
        {"samples": {"prompts": {"a": 1}}},
        {"model": [1], "scheduler": "x", "loss": None},
        {"text_encoder": {"a": 1}, "data": {"manifest": [[1]]}},
    ],
)
def test_a_configuration_of_wrong_types(change, sound, tmp_path):
    run = shutil.copytree(sound, tmp_path / "run")
    import yaml

    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | change))
    assert "How to repeat" in Html.of(write_report([run])).text


def test_a_few_lines_cannot_make_gigabytes(sound, tmp_path):
    run = shutil.copytree(sound, tmp_path / "run")
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    (run / "config.yaml").write_text("\n".join(lines))
    assert "config.yaml: repeats parts of itself" in Html.of(write_report([run])).text


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/etc/passwd"), Path.touch])
def test_samples_may_be_anything(make, sound, tmp_path):
    run = shutil.copytree(sound, tmp_path / "run")
    clips = sorted(p.name for p in (run / "samples").iterdir())
    for path in sorted((run / "samples").iterdir())[:2]:
        path.unlink()
        make(path)
    text = Html.of(write_report([run])).text
    assert clips and "cannot be shown" not in text and "root:" not in text
    if make is not Path.touch:
        assert f"samples/{clips[0]}: is" in text


def test_samples_and_weights_that_are_none(sound, tmp_path):
    run = shutil.copytree(sound, tmp_path / "run")
    shutil.rmtree(run / "samples")
    (run / "samples").write_text("no folder")
    (run / "vae").mkdir()
    (run / "vae" / "a.safetensors").write_bytes(b"\xff" * 100)
    os.mkfifo(run / "vae" / "b.safetensors")
    (run / "run.json").unlink()
    assert "samples: is no folder of the run" in Html.of(write_report([run])).text


def test_a_log_of_absurd_lines_takes_no_memory(tmp_path):
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, **{f"k{i}": i for i in range(1000)}}, {"step": "3"}, {"step": True}]
    text = "\n".join([*map(json.dumps, rows), "x" * 2_500_000, '{"step": 4, "loss": 1e999}', '{"step": 5, "lo'])
    (tmp_path / "metrics.jsonl").write_text(text)
    faults = Faults()
    columns = read_columns(tmp_path / "metrics.jsonl", tmp_path, faults)
    assert columns["step"].tolist() == [1, 4] and columns.keys() == {"step", "loss"}
    assert faults.lines == ["metrics.jsonl: 4 of 7 lines are no records, line 2 the first"]
