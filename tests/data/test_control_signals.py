"""Control signals against slow references, pixel by pixel in plain Python; and as the data path gives them."""

import colorsys
import json
import math

import pytest
import torch
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

from latentvid.data.clips import open_sources
from latentvid.data.signals import FULL_FLOW, STRONG, WEAK, flow_colours, signal_of
from latentvid.data.transforms import from_uint8
from latentvid.data.windows import Transform
from latentvid.errors import UserError
from latentvid.references import SIGNALS, ReferenceColumn, Role


def signal(name: str, **more) -> Role:
    return Role(place="control", signal=name, **more)


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
    made = signal_of(signal("canny"), clip)
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
        found = signal_of(signal(name), clip)[0, ..., 0].float()
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
    red, green, blue = signal_of(signal("flow"), clip)[:, 8:24, 8:24].float().mean((0, 1, 2)).tolist()
    assert red > 100 and red > 2 * green and red > 2 * blue  # to the right is hue 0
    dots = signal_of(signal("tracks"), clip).amax(-1) > 0
    assert dots[0].any() and 1 <= dots[3].nonzero()[:, 1].float().mean() - dots[0].nonzero()[:, 1].float().mean() <= 9
    assert not signal_of(signal("flow"), clip[:1]).any()


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
        assert torch.equal(edges, signal_of(signal("canny"), clip.pixels))
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
        (str(picture), "has 1 frame, its clip"),
    ]:
        table = tmp_path / "table.jsonl"
        table.write_text(
            "".join(json.dumps({**row, **({"pose": changed} if i == 1 else {})}) + "\n" for i, row in enumerate(rows))
        )
        with pytest.raises(UserError, match=message):
            open_sources([table], transform, roles=role)
    assert set(SIGNALS) == {"canny", "lines", "luminance", "flow", "tracks", "depth"}


@pytest.fixture(scope="module")
def depth_model(tmp_path_factory):
    """A small Depth Anything of random weights, with its image processor."""
    torch.manual_seed(0)
    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14,
        out_features=["stage1", "stage2"], reshape_hidden_states=False,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, patch_size=14, neck_hidden_sizes=[8, 8], reassemble_factors=[2, 1],
        reassemble_hidden_size=16, fusion_hidden_size=8, head_hidden_size=4,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("depth")
    DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    size = {"height": 28, "width": 28}
    DPTImageProcessor(size=size, keep_aspect_ratio=True, ensure_multiple_of=14).save_pretrained(folder)
    return folder


def test_depth_is_what_the_network_estimates(depth_model, digits_data):
    """Frame by frame, between the least and the greatest value of the whole clip; and as the data path computes it."""
    clip = scene(6, 30, 40)
    model = DepthAnythingForDepthEstimation.from_pretrained(depth_model)
    processor, alone = DPTImageProcessor.from_pretrained(depth_model), []
    for frame in clip:
        out = model(**processor(images=frame.numpy(), return_tensors="pt"))
        alone += processor.post_process_depth_estimation(out, [(30, 40)])
    x = torch.stack([each["predicted_depth"].detach() for each in alone])
    want = 255 * (x - x.min()) / (x.max() - x.min())
    role = signal("depth", signal_model=str(depth_model))
    found = signal_of(role, clip)
    assert found.dtype == torch.uint8 and found.shape == clip.shape and found.min() == 0 and found.max() == 255
    assert float((found - want[..., None]).abs().max()) <= 1.5
    column = ReferenceColumn(place="control", signal="depth", signal_model=str(depth_model))
    transform = Transform(spatial_stride=8, temporal_stride=4, max_frames=9)
    one = open_sources([digits_data / "train.jsonl"], transform, roles={"depth": column}).load(0, 0, 0)
    assert torch.equal(one.references[0], signal_of(role, one.pixels))
    assert Role(**role.as_json()) == role and "signal_model" not in signal("canny").as_json()


def test_depth_without_a_network_is_said(tmp_path, digits_data):
    transform = Transform(spatial_stride=8, temporal_stride=4, max_frames=9)
    column = ReferenceColumn(place="control", signal="depth", signal_model=str(tmp_path))
    with pytest.raises(UserError, match="holds no network of depth with its image processor"):
        open_sources([digits_data / "train.jsonl"], transform, roles={"depth": column})
    with pytest.raises(ValueError, match="signal: depth needs signal_model"):
        signal("depth")
    with pytest.raises(ValueError, match="signal_model is of signal: depth"):
        signal("canny", signal_model="a")
