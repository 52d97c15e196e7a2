"""PSNR and SSIM against their definitions, and whole files through the autoencoder in windows."""

import math

import pytest
import torch
import torch.nn.functional as nnf

from latentvid.data.video import probe, read_frames
from latentvid.data.writing import write_video
from latentvid.errors import UserError
from latentvid.evaluation import reconstruction
from latentvid.evaluation.reconstruction import MAX_PSNR, evaluate, psnr, reconstruct, reconstruct_file, ssim
from latentvid.models.autoencoder import CausalVideoAutoencoder


@pytest.fixture(scope="module")
def vae() -> CausalVideoAutoencoder:
    torch.manual_seed(0)
    return CausalVideoAutoencoder(latent_channels=4, widths=(8, 8, 8)).eval()


def noise(*shape: int, low: int = 0, high: int = 256) -> torch.Tensor:
    return torch.randint(low, high, shape, dtype=torch.uint8)


def bars(frames: int, height: int, width: int) -> torch.Tensor:
    """A clip whose frame i is grey level i: frames can be told apart after lossy coding."""
    return torch.arange(frames, dtype=torch.uint8)[:, None, None, None].expand(-1, height, width, 3).contiguous()


def test_psnr_is_that_of_the_mean_square_over_the_clip():
    a = noise(3, 16, 12, 3, high=200)
    assert psnr(a, a + 10) == pytest.approx(20 * math.log10(255 / 10), abs=1e-4)
    b = a.clone()
    b[0] += 10  # one frame of three: the error is averaged, not the decibels
    assert psnr(a, b) == pytest.approx(20 * math.log10(255 / 10) + 10 * math.log10(3), abs=1e-4)
    assert psnr(a, a) == MAX_PSNR


def test_ssim_is_the_definition_frame_by_frame():
    a = noise(2, 20, 14, 3)
    b = (a.float() * 0.8 + noise(2, 20, 14, 3, high=50)).to(torch.uint8)
    tap = torch.exp(-((torch.arange(11.0, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    window = (tap[:, None] * tap / tap.sum() ** 2)[None, None]

    def local_mean(x):  # over the window, reflected at the borders
        return nnf.conv2d(nnf.pad(x, (5, 5, 5, 5), mode="reflect"), window)

    x, y = (clip.permute(0, 3, 1, 2).reshape(6, 1, 20, 14).double() for clip in (a, b))
    mx, my = local_mean(x), local_mean(y)
    vx, vy, vxy = local_mean(x * x) - mx**2, local_mean(y * y) - my**2, local_mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = ((2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()
    assert ssim(a, b) == pytest.approx(float(expected), abs=1e-5)
    assert ssim(a, a) == pytest.approx(1.0, abs=1e-6)


def test_ssim_does_not_depend_on_how_frames_are_grouped(monkeypatch):
    a, b = noise(5, 12, 12, 3), noise(5, 12, 12, 3)
    whole = ssim(a, b)
    monkeypatch.setattr(reconstruction, "CHUNK_PIXELS", 2 * 12 * 12)
    assert ssim(a, b) == pytest.approx(whole, abs=1e-7)


def test_bad_pairs_are_refused():
    a = noise(2, 16, 16, 3)
    for other in (a.float(), a[:1], a[..., :1]):
        with pytest.raises(ValueError, match="PSNR and SSIM want|equal shapes"):
            psnr(a, other)
    with pytest.raises(UserError, match="11 x 11"):
        ssim(noise(2, 8, 16, 3), noise(2, 8, 16, 3))


@torch.no_grad()
def test_reconstruct_takes_the_mode_and_chunks_change_nothing(vae):
    video = torch.rand(3, 17, 16, 12) * 2 - 1
    whole = reconstruct(vae, video)
    assert whole.shape == video.shape and whole.abs().max() <= 1
    torch.testing.assert_close(reconstruct(vae, video, 4), whole, atol=1e-5, rtol=0)
    mean = vae.encode(video[None]).latent_dist.mean
    torch.testing.assert_close(whole, vae.decode(mean).sample[0].clamp(-1, 1))
    with pytest.raises(UserError, match="16 frames"):
        reconstruct(vae, video[:, :16])


def test_evaluate_averages_clips_of_any_shape(vae):
    videos = [torch.rand(3, 1, 12, 16) * 2 - 1, torch.full((3, 9, 16, 12), -1.0)]
    found = evaluate(vae, iter(videos))
    alone = [evaluate(vae, [video]) for video in videos]
    assert found["count"] == 2 and found["per_clip"] == [one["per_clip"][0] for one in alone]
    assert found["psnr"] == pytest.approx((alone[0]["psnr"] + alone[1]["psnr"]) / 2)
    assert found["ssim"] == pytest.approx((alone[0]["ssim"] + alone[1]["ssim"]) / 2)
    with pytest.raises(UserError, match="no clip"):
        evaluate(vae, [])


@pytest.mark.parametrize("frames", [1, 2, 5, 64, 65, 66, 140])
@pytest.mark.parametrize("area", [32 * 32, 1280 * 720, 10**9])
def test_windows_follow_each_other_and_are_legal(frames, area):
    windows = reconstruction._windows(frames, area, 4)
    assert windows[0][0] == 0
    assert all((count - 1) % 4 == 0 and 1 <= count <= 65 for _, count in windows)
    assert all(a + n == b for (a, n), (b, _) in zip(windows[:-1], windows[1:], strict=True))
    left = frames - sum(count for _, count in windows)
    assert 0 <= left < 4


def test_a_long_video_comes_out_whole_and_in_order(vae, tmp_path, monkeypatch):
    monkeypatch.setattr(reconstruction, "WINDOW", 9)
    clip = bars(34, 15, 25)
    write_video(tmp_path / "in.mp4", clip * 7, 23.976)
    result = reconstruct_file(vae, tmp_path / "in.mp4", tmp_path / "out.mp4")
    assert result.frames == 32 and len(result.changes) == 2
    assert "15 x 25 pixels" in result.changes[0] and "12 x 24" in result.changes[0]
    assert "2 of 34 frames" in result.changes[1]
    info = probe(tmp_path / "out.mp4")
    assert (info.frames, info.height, info.width) == (32, 12, 48)
    assert info.fps == pytest.approx(23.976, abs=1e-3)
    levels = read_frames(tmp_path / "out.mp4")[:, :, :22].float().mean(dim=(1, 2, 3))  # the originals' side
    torch.testing.assert_close(levels, 7.0 * torch.arange(32), atol=1.5, rtol=0)
    window = (
        read_frames(tmp_path / "out.mp4", 20, 3)[:, :, :22].float().mean(dim=(1, 2, 3))
    )  # across a seam, by seeking
    torch.testing.assert_close(window, levels[20:23], atol=0, rtol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]


def test_a_file_scores_as_its_frames_do(vae, tmp_path):
    clip = noise(9, 16, 16, 3)
    write_video(tmp_path / "in.mp4", clip, 8)
    result = reconstruct_file(vae, tmp_path / "in.mp4", tmp_path / "out.png", max_frames=6)
    video = read_frames(tmp_path / "in.mp4", 0, 5).permute(3, 0, 1, 2).float() / 127.5 - 1
    one = evaluate(vae, [video])
    assert (result.frames, result.psnr, result.ssim) == (5, pytest.approx(one["psnr"]), pytest.approx(one["ssim"]))


def test_bad_files_and_outputs_are_refused_before_any_work(vae, tmp_path, monkeypatch):
    write_video(tmp_path / "in.mp4", bars(9, 16, 16), 8)
    write_video(tmp_path / "tiny.png", noise(1, 2, 2, 3), 8)
    monkeypatch.setattr(reconstruction, "SHEET_FRAMES", 4)
    monkeypatch.setattr(reconstruction, "reconstruct", None)
    for name, output, frames, message in (
        ("none.mp4", "out.mp4", None, "none.mp4"),
        ("tiny.png", "out.mp4", None, "tiny.png.*smaller than one stride"),
        ("in.mp4", "out.avi", None, "mp4, .gif or .png"),
        ("in.mp4", "out.gif", None, "9 frames are too many"),
        ("in.mp4", "out.mp4", 0, "at least 1 frame"),
    ):
        with pytest.raises(UserError, match=message):
            reconstruct_file(vae, tmp_path / name, tmp_path / output, frames)
