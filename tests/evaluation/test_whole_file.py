"""Whole files through the autoencoder: nothing lost, in order, as one stream or in windows, in little memory."""

import threading

import pytest
import torch

from latentvid.data.transforms import from_uint8, to_uint8
from latentvid.data.video.reading import probe, read_frames
from latentvid.data.video.writing import write_video
from latentvid.errors import UserError
from latentvid.evaluation.pairs import whole_file
from latentvid.evaluation.pairs.fidelity import Fidelity
from latentvid.evaluation.pairs.reconstruction import reconstruct
from latentvid.evaluation.pairs.whole_file import ahead, reconstruct_file
from latentvid.models.autoencoder import CausalVideoAutoencoder


@pytest.fixture(scope="module")
def vae() -> CausalVideoAutoencoder:
    torch.manual_seed(0)
    return CausalVideoAutoencoder(latent_channels=4, widths=(8, 8, 8)).eval()


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def bars(frames: int, height: int, width: int) -> torch.Tensor:
    """A clip whose frame i is grey level 7 i: frames can be told apart after lossy coding."""
    return 7 * torch.arange(frames, dtype=torch.uint8)[:, None, None, None].expand(-1, height, width, 3).contiguous()


@pytest.mark.parametrize("stream", [True, False])
def test_a_long_video_comes_out_whole_and_in_order(vae, tmp_path, monkeypatch, stream):
    monkeypatch.setattr(whole_file, "CHUNK_PIXELS", 4 * 12 * 24)
    monkeypatch.setattr(whole_file, "WINDOW", 9)
    monkeypatch.setattr(whole_file, "has_stream", lambda vae: stream)
    write_video(tmp_path / "in.mp4", bars(35, 15, 25), 23.976)
    result = reconstruct_file(vae, tmp_path / "in.mp4", tmp_path / "out.mp4")
    said = " ".join(result.changes)
    assert result.frames == 35 and "15 x 25 pixels" in said and "12 x 24" in said
    assert ("windows of 9 frames" in said) != stream
    info = probe(tmp_path / "out.mp4")
    assert (info.frames, info.height, info.width) == (35, 12, 48)
    assert info.fps == pytest.approx(23.976, abs=1e-3)
    levels = read_frames(tmp_path / "out.mp4")[:, :, :22].float().mean(dim=(1, 2, 3))  # the originals' side
    torch.testing.assert_close(levels, 7.0 * torch.arange(35), atol=1.5, rtol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]


@pytest.mark.parametrize("frames", [1, 3, 5, 9, 12])
def test_a_file_scores_as_its_frames_do_in_one_piece(vae, tmp_path, monkeypatch, frames):
    monkeypatch.setattr(whole_file, "CHUNK_PIXELS", 4 * 16 * 16)
    write_video(tmp_path / "in.mp4", noise(12, 16, 16, 3), 8)
    result = reconstruct_file(vae, tmp_path / "in.mp4", tmp_path / "out.png", max_frames=frames)
    original = read_frames(tmp_path / "in.mp4", 0, frames)
    padded = torch.cat([original, original[-1:].expand(-(frames - 1) % 4, -1, -1, -1)])
    expected = Fidelity()
    expected.add(original, to_uint8(reconstruct(vae, from_uint8(padded)))[:frames])
    assert result.frames == frames and result.changes == ()
    assert (result.psnr, result.ssim) == (
        pytest.approx(expected.psnr, abs=1e-3),
        pytest.approx(expected.ssim, abs=1e-4),
    )


def test_windows_score_as_clips_of_their_own(vae, tmp_path, monkeypatch):
    monkeypatch.setattr(whole_file, "WINDOW", 5)
    monkeypatch.setattr(whole_file, "has_stream", lambda vae: False)
    write_video(tmp_path / "in.mp4", noise(7, 16, 16, 3), 8)
    result = reconstruct_file(vae, tmp_path / "in.mp4", tmp_path / "out.mp4")
    original, expected = read_frames(tmp_path / "in.mp4"), Fidelity()
    last = torch.cat([original[5:], original[-1:].expand(3, -1, -1, -1)])
    expected.add(original[:5], to_uint8(reconstruct(vae, from_uint8(original[:5]))))
    expected.add(original[5:], to_uint8(reconstruct(vae, from_uint8(last)))[:2])
    assert (result.psnr, result.ssim) == (
        pytest.approx(expected.psnr, abs=1e-3),
        pytest.approx(expected.ssim, abs=1e-4),
    )


def test_bad_files_and_outputs_are_refused_before_any_work(vae, tmp_path, monkeypatch):
    write_video(tmp_path / "in.mp4", bars(9, 16, 16), 8)
    write_video(tmp_path / "tiny.png", noise(1, 2, 2, 3), 8)
    monkeypatch.setattr(whole_file, "SHEET_FRAMES", 4)
    monkeypatch.setattr(whole_file, "read_chunks", None)
    for name, output, frames, message in (
        ("none.mp4", "out.mp4", None, "none.mp4"),
        ("tiny.png", "out.mp4", None, "tiny.png.*smaller than one stride"),
        ("in.mp4", "out.avi", None, "mp4, .webm, .gif, .png"),
        ("in.mp4", "out.gif", None, "9 frames are too many"),
        ("in.mp4", "out.mp4", 0, "max_frames=0: must be a whole number from 1"),
    ):
        with pytest.raises(UserError, match=message):
            reconstruct_file(vae, tmp_path / name, tmp_path / output, frames)


def test_a_fault_half_way_is_told_and_leaves_nothing(vae, tmp_path, monkeypatch):
    def breaks(path, first, later, threads):
        yield bars(first, 16, 16)
        raise UserError("the disk is gone")

    write_video(tmp_path / "in.mp4", bars(30, 16, 16), 8)
    monkeypatch.setattr(whole_file, "read_chunks", breaks)
    monkeypatch.setattr(whole_file, "CHUNK_PIXELS", 4 * 16 * 16)
    before = threading.active_count()
    with pytest.raises(UserError, match="the disk is gone"):
        reconstruct_file(vae, tmp_path / "in.mp4", tmp_path / "out.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"] and threading.active_count() == before


def test_ahead_keeps_order_and_stays_only_so_far_ahead():
    made = []

    def items():
        for i in range(20):
            made.append(i)
            yield i

    found = ahead(items(), depth=3)
    for i in range(10):
        assert next(found) == i
    found.close()
    assert len(made) <= 10 + 3 + 1
    assert list(ahead(iter(range(7)))) == list(range(7)) and list(ahead(iter(()))) == []
