"""Colours as they are meant to be seen: tones of HDR, matrices by tag and by size, deep pixels."""

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorRange, Colorspace
from encoding import encode, flat

from latentvid.data.video.hdr import HLG, PQ, as_sdr
from latentvid.data.video.reading import probe, read_frames
from latentvid.errors import ClipError


def pq(light: float) -> float:
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    y = (light / 10000) ** m1
    return ((c1 + c2 * y) / (1 + c3 * y)) ** m2


def test_tones_of_hdr_by_the_standards():
    """Grey of so many cd/m2 is that of BT.1886 with white at 203, as far as BT.2390's knee; white is bent to less."""

    def shown(value: float, transfer: int) -> int:
        grey = np.full((1, 1, 3), round(value * 65535), np.uint16)
        return int(as_sdr(grey, transfer, 9)[0, 0, 1])

    for light in (0.5, 5, 20, 60):
        assert abs(shown(pq(light), PQ) - 255 * (light / 203) ** (1 / 2.4)) <= 1
    assert 215 < shown(pq(203), PQ) < 240 and shown(pq(1000), PQ) == shown(pq(4000), PQ) == 255
    # HLG's 50% is 1/12 of scene light, 1000 * (1/12)^1.2 cd/m2 of a display's; 75% is BT.2408's white
    assert abs(shown(0.5, HLG) - 255 * (1000 / 12**1.2 / 203) ** (1 / 2.4)) <= 2
    assert abs(shown(0.75, HLG) - shown(pq(203), PQ)) <= 2 and shown(1, HLG) == 255
    levels = [shown(pq(x), PQ) for x in np.linspace(1, 1000, 60)]
    assert levels == sorted(levels)


@pytest.mark.parametrize(("transfer", "primaries"), [(PQ, 9), (HLG, 9), (14, 9)])
def test_wide_and_hdr_clips_are_shown_as_sdr(tmp_path, transfer, primaries):
    """A red of BT.709, coded over BT.2020: seen as that red, not as the pale one that its numbers say."""
    wide = np.linalg.inv(to_xyz((0.708, 0.292), (0.170, 0.797), (0.131, 0.046))) @ to_xyz(
        (0.64, 0.33), (0.30, 0.60), (0.15, 0.06)
    )
    light = wide @ (np.array([200, 40, 60]) / 255) ** 2.4 * (60 / 203 if transfer != 14 else 1)  # below the knee
    if transfer == PQ:
        coded = np.array([pq(203 * x) for x in light])
    elif transfer == HLG:
        display = light * 203 / 1000
        display = np.maximum(display, 0)
        luminance = display @ [0.2627, 0.678, 0.0593]
        scene = display * luminance ** (1 / 1.2 - 1)
        coded = np.where(
            scene <= 1 / 12,
            np.sqrt(3 * scene),
            0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-6)) + 0.55991073,
        )
    else:
        coded = light ** (1 / 2.4)
    deep = av.VideoFrame.from_ndarray(
        np.broadcast_to(np.rint(coded * 65535).astype(np.uint16), (32, 48, 3)).copy(), format="rgb48le"
    ).reformat(format="yuv420p10le", dst_colorspace=Colorspace.BT2020, dst_color_range=ColorRange.MPEG)
    tags = dict(colorspace=9, color_primaries=primaries, color_trc=transfer, color_range=1)
    encode(tmp_path / "clip.mkv", [deep] * 2, "libx264", "yuv420p10le", options={"qp": "0"}, **tags)
    expected = np.array([200, 40, 60]) * (1 if transfer == 14 else (60 / 203) ** (1 / 2.4))
    shown = read_frames(tmp_path / "clip.mkv")[1].double().mean((0, 1)).numpy()
    assert np.abs(shown - expected).max() < 4


def to_xyz(*colours) -> np.ndarray:
    matrix = np.array([[x / y, 1, (1 - x - y) / y] for x, y in colours]).T
    return matrix * np.linalg.solve(matrix, [0.3127 / 0.329, 1, (1 - 0.3127 - 0.329) / 0.329])


def test_dolby_vision_alone_and_odd_matrices_are_refused_by_name(tmp_path):
    encode(tmp_path / "clip.mp4", [flat(90)] * 2, "libx264")
    data = (tmp_path / "clip.mp4").read_bytes()
    assert b"avc1" in data
    (tmp_path / "dolby.mp4").write_bytes(data.replace(b"avc1", b"dvav"))
    encode(tmp_path / "odd.mkv", [flat(90)] * 2, colorspace=8)
    for name, reason in (("dolby.mp4", "hdr"), ("odd.mkv", "colours")):
        for look in (probe, read_frames):
            with pytest.raises(ClipError) as error:
                look(tmp_path / name)
            assert error.value.reason == reason


@pytest.mark.parametrize("pixel_format", ["yuv420p10le", "yuv444p10le", "yuv420p", "gbrp10le"])
def test_deep_sdr_is_rounded_not_dithered(tmp_path, pixel_format):
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None] * 4, (64, 64, 3)).copy()
    wide = av.VideoFrame.from_ndarray(ramp, format="rgb24").reformat(
        format=pixel_format, dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.MPEG
    )
    encode(tmp_path / "clip.mkv", [wide] * 2, "ffv1", pixel_format)
    assert (read_frames(tmp_path / "clip.mkv")[0].int() - torch.from_numpy(ramp).int()).abs().max() <= 1


def test_the_matrix_of_untagged_files_is_by_size(tmp_path):
    colour = np.zeros((1, 1, 3), np.uint8) + np.array([200, 40, 90], np.uint8)
    for height, width, matrix in (
        (576, 32, Colorspace.ITU601),
        (578, 32, Colorspace.ITU709),
        (32, 1280, Colorspace.ITU709),
    ):
        frame = av.VideoFrame.from_ndarray(np.broadcast_to(colour, (height, width, 3)).copy(), format="rgb24").reformat(
            format="yuv420p", dst_colorspace=matrix, dst_color_range=ColorRange.MPEG
        )
        frame.colorspace = 2
        encode(tmp_path / "clip.avi", [frame], "ffv1")
        shown = read_frames(tmp_path / "clip.avi")[0, height // 2, width // 2].int()
        assert (shown - torch.tensor([200, 40, 90])).abs().max() <= 3, (height, width)
