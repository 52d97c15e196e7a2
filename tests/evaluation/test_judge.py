"""The judge reads real clips right, and is not fooled by wrong ones."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from latentvid.data.video.reading import read_frames
from latentvid.data.video.writing import write_video
from latentvid.demo import judge as jd
from latentvid.demo.digits import COLOURS, DIRECTIONS, SIZES, Label, prompts, render
from latentvid.demo.judge import Judge, score

COUNT = 210


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load()


@pytest.fixture(scope="module")
def labels() -> list[Label]:
    return [label for label, _ in prompts(COUNT, heldout=False, seed=11)]


@pytest.fixture(scope="module")
def clips(labels: list[Label], tmp_path_factory: pytest.TempPathFactory) -> list[torch.Tensor]:
    """Held-out digit images, written as H.264 and read back."""
    folder, found = tmp_path_factory.mktemp("judge"), []
    for index, label in enumerate(labels):
        rng, path = np.random.default_rng(index), folder / f"{index}.mp4"
        size, frames = SIZES[rng.integers(3)], int(rng.choice([9, 17]))
        write_video(path, render(label, frames, size, rng, heldout=True), 8.0)
        found.append(read_frames(path))
    return found


def clip_of(label: Label, frames: int = 17, seed: int = 0) -> torch.Tensor:
    return render(label, frames, (32, 32), np.random.default_rng(seed), heldout=True)


def test_real_clips_score_near_one(judge: Judge, clips: list[torch.Tensor], labels: list[Label]):
    found = score(clips, labels, judge)
    assert found["count"] == COUNT
    least = {"digit": 0.97, "direction": 0.99, "both": 0.97, "strict": 0.95, "colour": 0.99, "verb": 0.99}
    assert all(found[name] >= bound for name, bound in least.items()), found


def test_shuffled_labels_score_at_chance(judge: Judge, clips: list[torch.Tensor], labels: list[Label]):
    order = np.random.default_rng(0).permutation(COUNT)
    found = score(clips, [labels[i] for i in order], judge)
    chance = {"digit": 1 / 10, "direction": 1 / 8, "both": 1 / 80, "strict": 1 / 80, "colour": 1 / 7, "verb": 1 / 2}
    for name, p in chance.items():
        assert abs(found[name] - p) < 4 * (p * (1 - p) / COUNT) ** 0.5, (name, found)


def blur(clip: torch.Tensor) -> torch.Tensor:
    x = torch.nn.functional.avg_pool2d(clip.float().movedim(-1, 1), 3, 1, 1)
    return x.movedim(1, -1)


def noise(clip: torch.Tensor) -> torch.Tensor:
    return clip + 20 * torch.randn(clip.shape, generator=torch.Generator().manual_seed(0))


def speck(clip: torch.Tensor) -> torch.Tensor:
    clip = clip.clone()
    clip[:, 0, 0] = 255
    return clip


@pytest.mark.parametrize("spoil", [blur, noise, speck, lambda clip: clip * 0.4, lambda clip: clip * 0.7 + 60])
def test_mild_faults_do_not_mislead(judge: Judge, clips: list[torch.Tensor], labels: list[Label], spoil: Callable):
    found = score([spoil(clip) for clip in clips[:70]], labels[:70], judge)
    assert found["strict"] >= 0.94 and found["colour"] >= 0.98 and found["verb"] >= 0.97, found


@pytest.mark.parametrize("direction", list(DIRECTIONS))
def test_mirrored_reversed_and_still_clips_change_the_direction(judge: Judge, direction: str):
    dy, dx = DIRECTIONS[direction]
    names = {way: name for name, way in DIRECTIONS.items()}
    clip = clip_of(Label(0, "white", "moves", direction))
    for changed, expected in (
        (clip, (dy, dx)),
        (clip.flip(0), (-dy, -dx)),
        (clip.flip(1), (-dy, dx)),
        (clip.flip(2), (dy, -dx)),
        (clip.transpose(1, 2), (dx, dy)),
    ):
        assert judge(changed).direction == names[expected]
    assert judge(clip[:1].expand(17, -1, -1, -1)).direction == "none"


def test_bounce_is_seen_and_gone_when_cut_off(judge: Judge):
    clip = clip_of(Label(2, "green", "bounces", "right"))
    assert judge(clip).bounced and not judge(clip[:9]).bounced


def test_swapped_digit_is_detected(judge: Judge):
    """Half the frames show another digit: direction still right, but not strictly right."""
    label, other = (Label(digit, "cyan", "moves", "down") for digit in (7, 0))
    clip, foreign = clip_of(label, seed=1), clip_of(other, seed=1)
    mixed = torch.cat([clip[:9], foreign[9:]])
    reads = judge(mixed).frame_digits
    assert reads[:9] == (7,) * 9 and reads[9:] == (0,) * 8
    assert score([mixed], [label], judge)["strict"] == 0
    assert score([foreign], [label], judge)["digit"] == 0


def test_swapped_channels_change_the_colour(judge: Judge):
    for colour, swapped in (("red", "blue"), ("yellow", "cyan"), ("green", "green"), ("white", "white")):
        clip = clip_of(Label(4, colour, "moves", "up"))
        assert judge(clip).colour == colour and judge(clip.flip(-1)).colour == swapped


def test_nothing_to_see_gives_a_verdict(judge: Judge):
    for value in (0, 255, 90):
        verdict = judge(torch.full((17, 32, 48, 3), value, dtype=torch.uint8))
        assert (verdict.digit, verdict.direction, verdict.colour, verdict.bounced) == (-1, "none", "none", False)
        assert verdict.frame_digits == (-1,) * 17 and verdict.path.shape == (17, 2) and verdict.path.isnan().all()


def test_garbage_gives_a_verdict(judge: Judge):
    noise = 255 * torch.rand(9, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    broken = torch.full((9, 32, 32, 3), float("nan"))
    broken[::2, 8:20, 8:20] = float("inf")
    for clip in (noise, broken, noise * 1e9 - 1e9, noise[:1], noise[:, :3, :2], noise[:2]):
        assert len(judge(clip).frame_digits) == len(clip)


def test_a_clip_that_fades_out_is_judged_by_what_is_seen(judge: Judge):
    clip = clip_of(Label(6, "red", "moves", "left")).clone()
    clip[9:] = 0
    verdict = judge(clip)
    assert (verdict.digit, verdict.direction) == (6, "left") and verdict.frame_digits[9:] == (-1,) * 8
    assert score([clip], [Label(6, "red", "moves", "left")], judge)["strict"] == 0


def test_images_are_judged_without_motion(judge: Judge):
    label = Label(3, "magenta")
    found = score([clip_of(label, frames=1)], [label], judge)
    assert found == {"digit": 1, "direction": 1, "both": 1, "strict": 1, "colour": 1, "verb": 1, "count": 1}


def test_colours_are_told_apart_by_chromaticity():
    known = torch.tensor(list(COLOURS.values())).float()
    share = known / known.sum(dim=1, keepdim=True)
    assert torch.pdist(share).min() > 0.15


def test_bad_input_is_named(judge: Judge, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="--train"):
        Judge.load(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match=r"\[F,H,W,3\]"):
        judge(torch.zeros(3, 9, 32, 32))
    with pytest.raises(ValueError, match="1 clips and 0 labels"):
        score([torch.zeros(9, 32, 32, 3)], [], judge)


def test_shipped_weights_are_small():
    assert jd.WEIGHTS.stat().st_size < 400_000


def test_training_repeats_and_learns(tmp_path: Path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        scores = [jd.train(tmp_path / name, steps=30, batch=64) for name in ("a", "b")]
    finally:
        torch.set_num_threads(threads)
    assert scores[0] == scores[1] > 0.5
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
