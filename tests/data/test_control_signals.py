"""Control signals against slow references, pixel by pixel in plain Python; and as the data path gives them."""

import colorsys
import json
import math

import pytest
import torch

from latentvid.data.clips import open_sources
from latentvid.data.signals import FULL_FLOW, STRONG, WEAK, flow_colours, signal_of
from latentvid.data.transforms import from_uint8
from latentvid.data.windows import Transform
from latentvid.errors import UserError
from latentvid.references import SIGNALS, ReferenceColumn


def scene(frames: int = 3, height: int = 14, width: int = 17) -> torch.Tensor:
    """A bright square that moves two pixels a frame to the right over faint noise."""
    rand = torch.Generator().manual_seed(0)
    clip = torch.randint(0, 12, (frames, height, width, 3), generator=rand, dtype=torch.uint8)
    for i in range(frames):
        clip[i, 4:10, 2 + 2 * i : 8 + 2 * i] = torch.tensor([250, 120, 60], dtype=torch.uint8)
    return clip


def lumas(frame: torch.Tensor) -> list[list[float]]:
    return [[0.299 * r + 0.587 * g + 0.114 * b for r, g, b in row] for row in frame.tolist()]


def weighed(x: list[list[float]], mask: list[list[float]]) -> list[list[float]]:
    """Each pixel's neighbours times the mask, borders repeated."""
    n, h, w = len(mask) // 2, len(x), len(x[0])
    at = lambda i, j: x[min(max(i, 0), h - 1)][min(max(j, 0), w - 1)]  # noqa: E731
    span = range(-n, n + 1)
    return [
        [sum(mask[n + a][n + b] * at(i + a, j + b) for a in span for b in span) for j in range(w)] for i in range(h)
    ]


SOBEL = [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]
DOWN = [list(row) for row in zip(*SOBEL, strict=True)]


def slow_canny(frame: torch.Tensor) -> list[list[int]]:
    weights = [math.exp(-(i**2) / 2) for i in range(-2, 3)]
    total = sum(weights) ** 2
    x = weighed(lumas(frame), [[a * b / total for b in weights] for a in weights])
    gx, gy = weighed(x, SOBEL), weighed(x, DOWN)
    h, w = len(x), len(x[0])
    size = [[math.hypot(gx[i][j], gy[i][j]) for j in range(w)] for i in range(h)]
    beyond = lambda i, j: size[i][j] if 0 <= i < h and 0 <= j < w else 0.0  # noqa: E731
    ways = {0: (0, 1), 1: (1, 1), 2: (1, 0), 3: (1, -1)}
    kept = [[0.0] * w for _ in range(h)]
    for i in range(h):
        for j in range(w):
            dy, dx = ways[round(math.atan2(gy[i][j], gx[i][j]) / (math.pi / 4)) % 4]
            if size[i][j] > beyond(i - dy, j - dx) and size[i][j] >= beyond(i + dy, j + dx):
                kept[i][j] = size[i][j]
    found = {(i, j) for i in range(h) for j in range(w) if kept[i][j] >= STRONG}
    open_ = list(found)
    while open_:
        i, j = open_.pop()
        for a, b in ((i + a, j + b) for a in (-1, 0, 1) for b in (-1, 0, 1)):
            if 0 <= a < h and 0 <= b < w and (a, b) not in found and kept[a][b] >= WEAK:
                found.add((a, b))
                open_.append((a, b))
    return [[255 * ((i, j) in found) for j in range(w)] for i in range(h)]


def test_canny_is_that_of_plain_loops():
    clip = scene()
    made = signal_of("canny", clip)
    assert made.shape == clip.shape and made.dtype == torch.uint8
    for frame, of in zip(made, clip, strict=True):
        assert frame[..., 0].tolist() == slow_canny(of) and (frame == frame[..., :1]).all()
    assert 10 < int((made[0, ..., 0] > 0).sum()) < 40  # about the square's outline


def test_lines_and_luminance_are_those_of_plain_loops():
    clip = scene(1)
    x = lumas(clip[0])
    gx, gy = weighed(x, SOBEL), weighed(x, DOWN)
    lines = [
        [min(255.0, math.hypot(a, b) / 4) for a, b in zip(*rows, strict=True)] for rows in zip(gx, gy, strict=True)
    ]
    for name, want in (("lines", lines), ("luminance", x)):
        found = signal_of(name, clip)[0, ..., 0].float()
        assert float((found - torch.tensor(want)).abs().max()) <= 0.51, name


def test_flow_is_coloured_by_direction_and_tracks_follow():
    pytest.importorskip("cv2")
    flow = torch.tensor([[[3.0, 0.0], [0.0, 0.5], [-1.0, 1.0], [0.0, 0.0]]])
    full = FULL_FLOW * math.hypot(1, 4)
    for (x, y), got in zip(flow[0].tolist(), flow_colours(flow)[0].tolist(), strict=True):
        hue, value = math.atan2(y, x) / (2 * math.pi) % 1, min(1.0, math.hypot(x, y) / full)
        assert got == pytest.approx([255 * part for part in colorsys.hsv_to_rgb(hue, 1.0, value)], abs=0.51)
    rand = torch.Generator().manual_seed(0)
    wide = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 20, generator=rand), (32, 80), mode="bicubic")[0]
    wide = (255 * wide.clamp(0, 1)).to(torch.uint8).permute(1, 2, 0)  # [32,80,3]
    clip = torch.stack([wide[:, 8 - 2 * i : 40 - 2 * i] for i in range(4)])  # what it shows moves right
    red, green, blue = signal_of("flow", clip)[:, 8:24, 8:24].float().mean((0, 1, 2)).tolist()
    assert red > 100 and red > 2 * green and red > 2 * blue  # to the right is hue 0
    dots = signal_of("tracks", clip).amax(-1) > 0
    assert dots[0].any() and 1 <= dots[3].nonzero()[:, 1].float().mean() - dots[0].nonzero()[:, 1].float().mean() <= 9
    assert not signal_of("flow", clip[:1]).any()


def test_the_data_path_computes_them_of_what_a_sample_shows(digits_data, tmp_path):
    """Of the window's own frames, after crop and flip."""
    transform = Transform(spatial_stride=8, temporal_stride=4, max_frames=9, max_area=24 * 24, flip=True)
    roles = {
        "edges": ReferenceColumn(place="control", signal="canny"),
        "small": ReferenceColumn(place="aligned", signal="luminance", max_area=256, dropout=0.0),
    }
    source = open_sources([digits_data / "train.jsonl"], transform, roles=roles)
    assert "edges, control: canny of each clip" in source.summary()
    for number in range(4):
        clip = source.load(number, 0, number)
        edges, small = clip.references
        assert torch.equal(edges, signal_of("canny", clip.pixels))
        assert [shown.role for shown in source.references.shapes[number]] == ["edges", "small"]
        assert small.shape[:3] == source.references.shapes[number][1].shape and small.shape[1] * small.shape[2] <= 256
    assert from_uint8(edges).shape == (3, *edges.shape[:3])


def test_a_column_of_signals_has_one_for_each_clip(digits_data, tmp_path):
    rows = [json.loads(line) for line in (digits_data / "train.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["frames"] > 1][:3]
    for row in rows:
        row["path"] = row["pose"] = str(digits_data / row["path"])
    transform = Transform(spatial_stride=8, temporal_stride=4, max_frames=9)
    role = {"pose": ReferenceColumn(column="pose", place="control")}
    picture = next(path for path in (digits_data / "clips/train").iterdir() if path.suffix == ".png")
    for changed, message in [
        (None, "has 0 files in `pose`: a ControlNet reads one of each clip"),
        ([rows[1]["path"]] * 2, "has 2 files in `pose`"),
        (str(picture), "has 1 frames, its clip"),
    ]:
        table = tmp_path / "table.jsonl"
        table.write_text(
            "".join(json.dumps({**row, **({"pose": changed} if i == 1 else {})}) + "\n" for i, row in enumerate(rows))
        )
        with pytest.raises(UserError, match=message):
            open_sources([table], transform, roles=role)
    assert set(SIGNALS) == {"canny", "lines", "luminance", "flow", "tracks"}
