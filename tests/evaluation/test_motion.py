"""Optical flow, flicker, warping error and dynamic degree on textures that move by known pixels."""

import sys

import pytest
import torch
import torch.nn.functional as nnf
from torchvision.models.optical_flow import raft_small

from latentvid.errors import ClipError, UserError
from latentvid.evaluation.motion.flow import Dis, Raft, open_flow, visible, warp
from latentvid.evaluation.motion.scores import (
    MOTION_SCORES,
    FlickerRows,
    MotionRows,
    fastest,
    moves,
    stride,
    warping_error,
)
from latentvid.evaluation.rows import Clip

CPU = torch.device("cpu")
SCORES = {score.name: score for score in MOTION_SCORES}
MARGIN = 30  # pixels that a texture reaches beyond the picture


@pytest.fixture(autouse=True)
def no_cached_raft(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))


def moving(shift: tuple[float, float], frames: int = 6, height: int = 48, width: int = 64) -> torch.Tensor:
    """A smooth texture that moves by `shift` (dy, dx) pixels a frame, uint8 [F,H,W,3]."""
    high, wide = height + 2 * MARGIN, width + 2 * MARGIN
    texture = nnf.interpolate(torch.rand(1, 3, high // 8, wide // 8), (high, wide), mode="bicubic").clamp(0, 1) * 255
    last, found = torch.tensor([wide - 1.0, high - 1.0]), []
    for t in range(frames):
        y, x = (torch.arange(float(n)) + MARGIN - d * t for n, d in zip((height, width), shift, strict=True))
        at = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)  # [H,W,2], (x, y)
        picture = nnf.grid_sample(texture, (2 * at / last - 1)[None], mode="bicubic", align_corners=True)
        found.append(picture[0].movedim(0, -1))
    return torch.stack(found).clamp(0, 255).round().to(torch.uint8)


def flickering(clip: torch.Tensor, strength: float) -> torch.Tensor:
    """Every other frame brighter, and noise."""
    turns = strength * (1 - 2 * (torch.arange(len(clip)) % 2))[:, None, None, None]
    return (clip + turns + 0.3 * strength * torch.randn(clip.shape)).clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize(("dy", "dx"), [(0, 0), (0.5, -0.25), (2, 1), (-1.5, 3), (4, -5)])
@pytest.mark.parametrize(("height", "width"), [(24, 32), (48, 64), (96, 120)])
def test_flow_is_right_within_a_fifth_of_a_pixel(dy, dx, height, width):
    a, b = moving((dy, dx), 2, height, width)
    found = open_flow(None, CPU)(a, b)
    assert found.shape == (height, width, 2) and found.dtype == torch.float32
    edge = 5  # what is there has partly left the picture
    wrong = (found[edge:-edge, edge:-edge] - torch.tensor([dx, dy])).norm(dim=-1)
    assert float(wrong.median()) < 0.1 and float(wrong.mean()) < 0.2


def test_warping_takes_from_where_the_flow_points():
    picture = torch.arange(12.0).reshape(3, 4, 1)
    seen, inside = warp(picture, torch.tensor([1.0, 0.5]).expand(3, 4, 2))
    assert inside.tolist() == [[True] * 3 + [False]] * 2 + [[False] * 4]
    torch.testing.assert_close(seen[:2, :3], picture[:2, 1:] + 2)  # half a row further down is 2 more


def test_hidden_pixels_and_edges_of_motion_do_not_count():
    forward, backward = (torch.full((20, 20, 2), value) for value in (1.0, -1.0))
    assert visible(forward, backward)[:19, :19].all() and not visible(forward, backward)[19].any()
    backward[5, 5] = 2.0  # what comes to (5, 5) does not come back to (4, 4)
    assert not visible(forward, backward)[4, 4] and visible(forward, backward)[4, 7]
    edge = torch.zeros(20, 20, 2)
    edge[:, 10:, 0] = 0.3
    assert not visible(edge, -edge)[:, 9].any() and visible(edge, -edge)[:, :9].all()


def test_warping_error_is_of_visible_pixels_and_of_all_where_none_is():
    a, b = moving((0, 0), 2, 24, 24)
    still = torch.zeros(24, 24, 2)
    b = (a.int() + 51).clamp(0, 255).to(torch.uint8)
    expected = float(((b.float() - a.float()) / 255).square().mean())
    assert warping_error(a, b, still, still) == pytest.approx(expected, rel=1e-5)
    far = torch.full((24, 24, 2), 100.0)
    assert warping_error(a, b, far, far) > 0.5 * expected


def test_warping_error_is_near_0_for_a_rigid_motion_and_rises_with_flicker():
    extractor = MotionRows(None, CPU)
    for shift in ((0, 0), (1.5, -2)):
        clip = moving(shift)
        errors = [SCORES["warping_error"]([extractor(Clip(flickering(clip, s)))]) for s in (0, 4, 8, 16, 32)]
        assert errors[0] < 1e-4 and errors == sorted(errors) and errors[2] > 10 * errors[0]
        assert errors[-1] == pytest.approx((2 * 32 / 255) ** 2, rel=0.2)
    assert SCORES["motion"]([extractor(Clip(moving((3, 4))))]) == pytest.approx(5.0, abs=0.1)


def test_a_still_clip_does_not_move_and_a_fast_one_does():
    extractor = MotionRows(None, CPU)
    still, slow, fast = (extractor(Clip(moving(shift))) for shift in ((0, 0), (0.3, 0.4), (3, 4)))
    assert still[0].tolist() == pytest.approx([0, 0, 0], abs=1e-9)
    assert [SCORES["dynamic_degree"]([rows]) for rows in (still, slow, fast)] == [0, 0, 1]
    assert SCORES["dynamic_degree"]([still, slow, fast, fast]) == 0.5


def test_dynamic_degree_is_vbenchs_rule():
    assert moves([6.1, 6.1, 0, 0], 8, 256, 8.0) and not moves([6.1, 0, 0, 0], 8, 256, 8.0)  # round(4 * 8 / 16) = 2
    assert not moves([5.9] * 7, 8, 256, 8.0) and moves([3.1] * 7, 8, 128, 24.0)
    assert not moves([6.1] * 7, 8, 256, 4.0) and moves([12.1] * 7, 8, 256, 4.0)  # twice the time, twice the way
    assert not moves([0.0], 2, 256, 8.0)  # at least one pair must move
    assert [stride(fps) for fps in (2, 8, 11, 16, 24, 30)] == [1, 1, 1, 2, 3, 4]
    flow = torch.zeros(10, 10, 2)
    flow[0, :5, 0], flow[0, 5:, 1] = 3.0, 1.0
    assert fastest(flow) == 3.0
    with pytest.raises(ValueError, match="frames a second"):
        stride(0.0)


def test_dynamic_degree_looks_at_eight_frames_a_second():
    clip = moving((0.4, 0.6), 9)  # 0.7 pixels a frame; 1.1 would be motion
    extractor = MotionRows(None, CPU)
    assert extractor(Clip(clip, fps=8.0))[0, 2] == 0
    found = extractor(Clip(clip, fps=32.0))  # every fourth frame
    assert found[0, 2] == 1 and float(found[0, 1]) == pytest.approx(0.72, abs=0.05)
    with pytest.raises(ClipError, match="give longer clips"):
        extractor(Clip(clip[:4], fps=32.0, name="a.mp4"))


@pytest.mark.parametrize(("height", "width"), [(48, 144), (144, 48)])
def test_dynamic_degree_measures_by_the_shorter_side(height, width):
    """2 pixels a frame are more than 6/256 of the shorter side, 1.1, and less than of the longer, 3.4."""
    clip = moving((1.6, 1.2), 5, height, width)
    assert MotionRows(None, CPU)(Clip(clip))[0, 2] == 1


def test_flicker_is_the_mean_absolute_difference():
    clip = moving((1, 1), 4)
    expected = [float((b.int() - a.int()).abs().float().mean()) for a, b in zip(clip[:-1], clip[1:], strict=True)]
    rows = FlickerRows(None, CPU)(Clip(clip))
    assert rows[:, 0].tolist() == pytest.approx(expected)
    assert SCORES["flicker"]([rows, rows]) == pytest.approx(sum(expected) / 3)


def test_clips_without_motion_to_see_are_refused():
    for extractor in (FlickerRows(None, CPU), MotionRows(None, CPU)):
        with pytest.raises(ClipError, match=r"a\.mp4: .*at least 2 frames"):
            extractor(Clip(moving((0, 0), 1), name="a.mp4"))
    with pytest.raises(ClipError, match="16 pixels a side"):
        MotionRows(None, CPU)(Clip(moving((0, 0), 2, 12, 64)))
    with pytest.raises(UserError, match="at least 16 a side"):  # below, OpenCV ends the process
        Dis()(*moving((0, 0), 2, 12, 64))
    with pytest.raises(ValueError, match="uint8"):
        Dis()(*moving((0, 0), 2).float())


def test_raft_serves_where_its_weights_are(tmp_path):
    network = raft_small(weights=None).eval()
    (tmp_path / "raft").mkdir()
    torch.save(network.state_dict(), tmp_path / "raft" / "some.pth")
    extractor = MotionRows(tmp_path, CPU)
    assert "RAFT (small" in extractor.fingerprint and isinstance(extractor.flow, Raft)
    a, b = moving((1, 2), 2, 128, 136)
    with torch.no_grad():
        x, y = (frame.movedim(-1, 0)[None].float() / 127.5 - 1 for frame in (a, b))
        expected = network(x, y, num_flow_updates=20)[-1][0].movedim(0, -1)
    torch.testing.assert_close(extractor.flow(a, b), expected, rtol=1e-3, atol=1e-3)


def test_raft_pads_and_enlarges_what_it_cannot_take(tmp_path):
    flow, seen = Raft(raft_small(weights=None).state_dict(), CPU), []

    def network(x, y, num_flow_updates):
        seen.append(tuple(x.shape))
        return [torch.full((1, 2, *x.shape[-2:]), 6.0)]

    flow.network = network
    found = [flow(*moving((0, 0), 2, height, width)) for height, width in ((130, 141), (48, 64))]
    assert seen == [(1, 3, 136, 144), (1, 3, 144, 192)]
    assert [tuple(each.shape) for each in found] == [(130, 141, 2), (48, 64, 2)]
    assert found[0].unique().tolist() == [6] and found[1].unique().tolist() == [2]


def test_without_weights_the_method_is_named_and_bad_ones_are_refused(tmp_path, monkeypatch):
    assert "DIS" in MotionRows(None, CPU).fingerprint and "OpenCV" in MotionRows(tmp_path, CPU).fingerprint
    (tmp_path / "raft").mkdir()
    with pytest.raises(UserError, match="holds 0 files"):
        open_flow(tmp_path, CPU)
    torch.save({"weight": torch.ones(1)}, tmp_path / "raft" / "some.pth")
    with pytest.raises(UserError, match=r"some\.pth does not hold the weights of torchvision's RAFT"):
        open_flow(tmp_path, CPU)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match=r"WEIGHTS/raft, or pip install latentvid\[evaluation\]"):
        open_flow(None, CPU)
