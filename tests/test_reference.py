"""Reference runs: what is kept of one, and that another is within its tolerance, or not."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from PIL import Image

from latentvid.demo.scores import ORDER
from latentvid.errors import UserError
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.stages.vae.task import VaeTask
from latentvid.training.trainer import train

ROOT = Path(__file__).parents[1]


@pytest.fixture
def reference(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import reference

    monkeypatch.setattr(reference, "ROOT", tmp_path / "kept")
    yield reference
    sys.modules.pop("reference")


@pytest.fixture(scope="module")
def demo(tmp_path_factory, dit_config, vae_config, digits_data, tiny_latents) -> Path:
    """A folder as `make demo` leaves it, of tiny runs and made-up scores."""
    folder = tmp_path_factory.mktemp("demo")
    measured = ("validation.every=3", "validation.samples=4")
    AcceleratorState._reset_state(reset_partial_state=True)
    train(vae_config(folder / "vae_run", *measured, f"validation.manifest={digits_data / 'train.jsonl'}"), VaeTask)
    train(dit_config(folder / "dit_run", *measured, f"validation.latents={tiny_latents}"), DitTask)
    write_scores(folder, {name: 0.9 for name in ORDER})
    Image.new("RGB", (8, 8)).save(folder / "contact_sheet.png")
    return folder


def write_scores(folder: Path, scores: dict[str, float]) -> None:
    text = json.dumps(scores | {"counts": {"seen": 100, "heldout": 25}, "seconds": 60.0})
    (folder / "scores.json").write_text(text)


def test_a_run_lies_within_its_own_tolerance_and_another_may_not(reference, demo, tmp_path, capsys):
    file = reference.record("demo", demo, ())
    kept = json.loads(file.read_text())
    for stage in ("vae", "dit"):
        lines = (file.parent / f"{stage}.csv").read_text().splitlines()
        assert len(lines) == 7 and lines[0].startswith("step,loss") and lines[-1].startswith("6,")
        assert (file.parent / f"{stage}.validation.jsonl").is_file() and (file.parent / f"{stage}.yaml").is_file()
        assert kept["stages"][stage]["steps"] == 6 and kept["stages"][stage]["versions"]["torch"]
    assert {"vae psnr, ema", "dit x_mse, raw", "digit"} <= kept["figures"].keys()
    assert (file.parent / "curves.svg").read_text().startswith("<svg") and (file.parent / "clips.jpg").is_file()
    # three deviations of a share of 0.9 in 100 clips
    assert kept["figures"]["digit"]["tolerance"] == pytest.approx(3 * (0.9 * 0.1 / 100) ** 0.5)
    assert reference.check("demo", demo)

    other = tmp_path / "other"
    shutil.copytree(demo, other)
    write_scores(other, {name: 0.9 for name in ORDER} | {"digit": 0.8, "direction": 0.98})
    capsys.readouterr()
    assert not reference.check("demo", other)
    said = {line.split()[0]: line.split()[-1] for line in capsys.readouterr().out.splitlines()}
    assert (said["digit"], said["direction"], said["both"]) == ("OUTSIDE", "within", "within")
    (other / "dit_run" / "validation.jsonl").unlink()
    assert not reference.check("demo", other)
    assert "missing" in capsys.readouterr().out


def test_other_seeds_widen_the_tolerance_which_then_stays(reference, demo, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    write_scores(other, {name: 0.9 for name in ORDER} | {"digit": 0.7})
    wide = json.loads(reference.record("demo", demo, [other]).read_text())["figures"]["digit"]["tolerance"]
    assert wide == pytest.approx(3 * 0.2 / 2**0.5)
    again = json.loads(reference.record("demo", demo, ()).read_text())["figures"]["digit"]["tolerance"]
    assert again == wide


def test_what_is_missing_is_said(reference, demo, tmp_path):
    with pytest.raises(UserError, match="there is no reference demo"):
        reference.check("demo", demo)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no scores.json: make demo writes it"):
        reference.record("demo", tmp_path / "empty", ())
