"""Copies that were encoded again are found as repeats; clips that only look alike are none."""

from itertools import count
from pathlib import Path

import pytest
import torch

from latentvid.data.video.writing import write_video
from latentvid.errors import UserError
from latentvid.evaluation.clip_folder import Item
from latentvid.evaluation.footage import Excerpt
from latentvid.evaluation.repeats import LookRows, copies, repeats
from latentvid.evaluation.row_cache import Found
from latentvid.evaluation.rows import Clip
from latentvid.evaluation.scoring import ScoringConfig, score_clips


def scene(number: int, start: float = 8.0, contrast: float = 150.0) -> torch.Tensor:
    """uint8 [9,48,64,3]: a spot that moves right, before a background of the scene's own."""
    random = torch.Generator().manual_seed(number)
    across, down = torch.arange(64.0), torch.arange(48.0)[:, None]
    waves = torch.rand(4, generator=random)
    ground = 60 + 40 * ((0.1 + waves[0] / 5) * across + 9 * waves[1]).sin() * (waves[2] / 5 * down + 9 * waves[3]).cos()
    spots = [torch.exp(-((across - start - 4 * t) ** 2 + (down - 24) ** 2) / 40) for t in range(9)]
    return torch.stack([ground + contrast * spot for spot in spots]).clamp(0, 255).byte()[..., None].repeat(1, 1, 1, 3)


NUMBERS = count()


def found(*clips: torch.Tensor) -> Found:
    """Looks of clips, each in a file of its own."""
    excerpts = [Excerpt(Path(f"{next(NUMBERS)}.mp4"), 0, 9, 48, 64, 8.0) for _ in clips]
    return Found([LookRows()(Clip(clip)) for clip in clips], [Item(e.path.name, e) for e in excerpts])


def written_again(clip: torch.Tensor) -> torch.Tensor:
    grain = torch.randn(clip.shape, generator=torch.Generator().manual_seed(0))
    return (0.97 * clip + 3 + grain).clamp(0, 255).byte()


def test_only_what_shows_the_same_is_a_copy():
    real = found(scene(0), scene(1), scene(2))
    assert copies(found(scene(3), scene(4)), real) == []
    made = found(scene(3), written_again(scene(1)), written_again(scene(3)))
    one, other = copies(made, real)
    assert one == (real.items[1], made.items[1]) and other == (made.items[0], made.items[2])
    assert copies(found(scene(1, start=24.0), scene(1).flip(0)), real) == []  # the spot elsewhere, or going back
    black = torch.zeros(9, 48, 64, 3, dtype=torch.uint8)
    assert copies(found(black, black), real) == []  # nothing to tell them by
    assert LookRows()(Clip(scene(0)[:1])).shape == (1, 68)
    pictures = found(scene(5)[:1], scene(6)[:1], written_again(scene(5)[:1]))
    assert copies(pictures, found(scene(7)[:1])) == [(pictures.items[0], pictures.items[2])]


def test_where_the_copies_are_is_said():
    assert "1 clip looks the same as another file's within a set" in repeats(found(scene(0), scene(0)), found(scene(1)))
    both = repeats(found(scene(0), scene(1)), found(scene(0), scene(1)))
    assert "2 clips look the same as another file's in both sets" in both
    assert repeats(found(scene(0)), found(scene(1))) is None


def test_copies_that_were_encoded_again_are_refused(tmp_path, fresh_accelerate, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    made, real = tmp_path / "made", tmp_path / "real"
    for k in range(3):
        write_video(made / f"{k}.mp4", scene(k), 8, crf=12)
        write_video(real / f"r{k}.mp4", scene(10 + k), 8, crf=12)

    def score(**more):
        about = {"metrics": ["own_scores:colours"], "resamples": 0, "out": tmp_path / "out"} | more
        return score_clips(ScoringConfig(clips=made, real=real, **about))

    assert score().results["colours"].count == 3
    write_video(real / "r2.mp4", scene(1), 8, crf=30)
    with pytest.raises(UserError, match=r"colours: 1 clip looks .* in both sets \(1.mp4 as r2.mp4\).*--allow repeats"):
        score()
    assert score(allow=["repeats"]).results["colours"].count == 3
    for name in ("r0.mp4", "r1.mp4", "r2.mp4"):
        (real / name).unlink()
    for k in range(3):  # what was made of the real clips, as reconstructions are, is no copy of them
        write_video(real / f"{k}.mp4", scene(k), 8, crf=30)
    assert score().results["colours"].count == 3
