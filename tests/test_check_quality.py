"""`make check-quality`: what of a short run's scores fails it, and what is chance."""

import json
import sys
from pathlib import Path

import pytest

from latentvid.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import check_quality

GOOD = {"vae_psnr": 27.0, "vae_ssim": 0.9, "digit": 0.6, "direction": 0.7, "colour": 0.9, "both": 0.5}
GOOD |= {"chance_both": 0.011, "counts": {"seen": 84}}


def run(tmp_path, monkeypatch, capsys, scores) -> tuple[int, str]:
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    monkeypatch.setattr(sys, "argv", ["check_quality", str(tmp_path)])
    try:
        check_quality.main()
    except SystemExit as end:
        return end.code, capsys.readouterr().out
    return 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("loss", "failed"),
    [
        ({}, []),
        ({"vae_psnr": 22.4}, ["vae_psnr"]),
        ({"digit": 0.12}, ["digit"]),  # chance is 0.1
        ({"direction": 0.13, "both": 0.02}, ["direction", "both"]),
        ({"colour": 0.2}, ["colour"]),
    ],
)
def test_a_loss_of_quality_fails_by_name(tmp_path, monkeypatch, capsys, loss, failed):
    code, said = run(tmp_path, monkeypatch, capsys, GOOD | loss)
    assert code == bool(failed)
    assert [line.split()[0] for line in said.splitlines() if line.endswith("NO")] == failed


def test_few_clips_must_be_further_above_chance():
    for count, good in ((16, False), (160, True)):
        found = check_quality.verdicts(GOOD | {"digit": 0.25, "counts": {"seen": count}})
        assert {name: is_good for name, *_, is_good in found}["digit"] is good


def test_scores_that_are_none_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["check_quality", str(tmp_path)])
    with pytest.raises(SystemExit):
        check_quality.main()
    assert "scores.json" in capsys.readouterr().err
    with pytest.raises((KeyError, UserError)):
        check_quality.verdicts({"vae_psnr": 30})
