"""FID, KID, IS, FVD, KVD against torchmetrics and the published formulas; intervals and floors."""

import math
from types import SimpleNamespace

import pytest
import scipy.linalg
import torch
from random_networks import i3d_weights
from safetensors.torch import save_file
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchmetrics.image import fid as reference_fid
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore as ReferenceInceptionScore
from torchmetrics.image.kid import KernelInceptionDistance, poly_kernel

from latentvid.errors import ClipError, UserError
from latentvid.evaluation.mean_score import MeanScore
from latentvid.evaluation.metrics import open_metrics
from latentvid.evaluation.rows import Clip
from latentvid.evaluation.sets import networks
from latentvid.evaluation.sets.features import I3DRows, InceptionRows, spread
from latentvid.evaluation.sets.inception import PACKAGED, load_inception
from latentvid.evaluation.sets.resizing import SIDE, antialiased
from latentvid.evaluation.sets.scores import FrechetScore, InceptionScore, KernelScore
from latentvid.evaluation.summary import parts, summarise, summarise_one

FID, KID, IS = FrechetScore("fid", "x"), KernelScore("kid", "x"), InceptionScore("is", "x")


def clips(count: int, width: int, rows: int = 1, shift: float = 0.0) -> list[torch.Tensor]:
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(1)) / width**0.5
    return [torch.randn(rows, width).abs() @ mixing + shift for _ in range(count)]


def ones(count: int) -> torch.Tensor:
    return torch.ones(1, count, dtype=torch.float64)


class Same(nn.Module):
    """What torchmetrics takes for the network: the "pictures" are features already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize(("counts", "width", "rows"), [((40, 30), 100, 1), ((90, 60), 16, 2)])
def test_the_frechet_distance_is_torchmetrics_and_the_published_formula(counts, width, rows):
    a, b = clips(counts[0], width, rows), clips(counts[1], width, rows, shift=0.3)
    found = FID(a, b)
    metric = FrechetInceptionDistance(feature=Same(width)).set_dtype(torch.float64)
    for real, sets in ((False, a), (True, b)):
        metric.update(torch.cat(sets).double(), real=real)
    assert found == pytest.approx(float(metric.compute()), rel=1e-6)
    x, y = (torch.cat(sets).double().numpy() for sets in (a, b))
    first, second = ((z - z.mean(0)).T @ (z - z.mean(0)) / (len(z) - 1) for z in (x, y))
    root = scipy.linalg.sqrtm(first @ second).real
    published = ((x.mean(0) - y.mean(0)) ** 2).sum() + (first + second - 2 * root).trace()
    assert found == pytest.approx(published, rel=1e-4)  # the matrix's root is the less exact one where N < D


@pytest.mark.parametrize(("count", "width"), [(20, 64), (64, 8)])
def test_a_set_against_itself_is_zero(count, width):
    own = clips(count, width)
    scale = float(torch.cat(own).var(0).sum())
    assert FID(own, own) < 1e-9 * scale
    assert InceptionScore("is", "x")([torch.zeros(1, 5)] * 3) == pytest.approx(1)


def test_the_kernel_distance_is_torchmetrics():
    a, b = clips(24, 32), clips(24, 32, shift=0.2)
    metric = KernelInceptionDistance(feature=Same(32), subsets=1, subset_size=24).set_dtype(torch.float64)
    metric.update(torch.cat(b).double(), real=True)
    metric.update(torch.cat(a).double(), real=False)
    assert KID(a, b) == pytest.approx(float(metric.compute()[0]), rel=1e-6)
    many = KernelInceptionDistance(feature=Same(32), subsets=400, subset_size=12).set_dtype(torch.float64)
    many.update(torch.cat(b).double(), real=True)
    many.update(torch.cat(a).double(), real=False)
    mean, deviation = (float(x) for x in many.compute())
    assert abs(KID(a, b) - mean) < 4 * deviation / math.sqrt(400)  # what subsets tend to


def test_the_inception_score_is_torchmetrics():
    logits = [4 * torch.randn(2, 10) for _ in range(15)]
    with pytest.warns(UserWarning):
        metric = ReferenceInceptionScore(feature=Same(10), splits=1)
    metric.update(torch.cat(logits))
    assert IS(logits) == pytest.approx(float(metric.compute()[0]), rel=1e-5)


@pytest.mark.parametrize("width", [60, 6])
def test_resamples_are_scores_of_repeated_clips(width):
    a, b = clips(12, width, rows=2), clips(10, width, rows=2, shift=0.2)
    counts, real_counts = torch.randint(3, (3, 12)).double(), torch.randint(3, (3, 10)).double()
    repeated = [
        [[clip for clip, n in zip(clips, row, strict=True) for _ in range(int(n))] for row in rows]
        for clips, rows in ((a, counts), (b, real_counts))
    ]
    for score in (FID, IS):
        found = score.of_resamples(a, counts, b, real_counts)
        assert found.tolist() == pytest.approx([score(x, y) for x, y in zip(*repeated, strict=True)], rel=1e-6)


def test_copies_of_a_clip_are_no_pairs_of_the_kernel_distance():
    a, b = clips(5, 8, rows=2), clips(4, 8, rows=2)
    counts = torch.tensor([[2.0, 0, 1, 1, 1]], dtype=torch.float64)

    def within(rows: list[tuple[int, int, torch.Tensor]]) -> float:  # (clip, copy, features)
        kernels = [
            float(poly_kernel(x[None], y[None]))
            for i, (clip, copy, x) in enumerate(rows)
            for j, (other, twin, y) in enumerate(rows)
            if i != j and (clip != other or copy == twin)
        ]
        return sum(kernels) / len(kernels)

    first = [(k, copy, row) for k, clip in enumerate(a) for copy in range(int(counts[0, k])) for row in clip.double()]
    second = [(k, 0, row) for k, clip in enumerate(b) for row in clip.double()]
    between = torch.stack([poly_kernel(x[None], y[None]) for _, _, x in first for _, _, y in second]).mean()
    expected = within(first) + within(second) - 2 * float(between)
    assert float(KID.of_resamples(a, counts, b, ones(4))) == pytest.approx(expected, rel=1e-9)


def test_too_few_clips_are_refused():
    for score in (FID, KID):
        with pytest.raises(UserError, match="needs 2 or more"):
            score(clips(1, 4), clips(5, 4))


# ----------------------------------------------------------------------------------------------------------- floors


def test_the_floor_is_of_two_parts_of_the_real_clips_that_share_no_file():
    real = clips(21, 6)
    for count, expected in ((4, 4), (50, 10)):
        first, second = parts(range(21), count)
        assert len(first) == len(second) == expected
        assert not set(first) & set(second)
    result = summarise_one(FID, clips(50, 6), real, 0)
    assert (result.count, result.real_count, result.floor_count) == (50, 21, 10)
    assert (
        result.floor == FID(*([real[k] for k in part] for part in parts(range(21), 50))) and "two p" in result.floor_of
    )
    assert summarise_one(FID, clips(5, 6), clips(2, 6), 0).floor is None  # halves of one clip each
    files = [0] * 5 + [1] * 3 + [2] * 8 + [3] * 2
    first, second = parts(files, 9)
    assert len(first) == len(second) > 2 and not {files[k] for k in first} & {files[k] for k in second}
    assert summarise_one(FID, clips(5, 6), real, 0, real_files=[0] * 21).floor is None  # all of one file


def test_files_that_hold_alike_clips_do_not_lower_the_floor():
    files = [file for file in range(8) for _ in range(16)]
    real = [clip + 0.1 * torch.randn(1, 6) for clip in clips(8, 6) for _ in range(16)]
    by_clip, by_file = (summarise_one(FID, clips(64, 6), real, 0, real_files=of).floor for of in (None, files))
    assert by_file > 4 * by_clip


def test_the_floor_of_single_clips_is_the_score_of_real_ones():
    score = MeanScore(name="m", extractor="x", compares="none", better="lower")
    found = summarise({"m": score, "fid": FID}, {"x": clips(6, 4)}, {"x": clips(8, 4)}, resamples=10)
    assert found["m"]["floor_count"] == 8 and found["m"]["floor_of"] == "the real clips"
    assert found["m"]["real_count"] is None and found["fid"]["real_count"] == 8
    assert summarise_one(IS, clips(6, 4), clips(8, 4), 0).floor_count == 6  # its number of clips pulls it
    with pytest.raises(ValueError, match="compares with real clips"):
        summarise_one(FID, clips(4, 4), None)


# ---------------------------------------------------------------------------------------------------------- networks


class Pool(nn.Module):
    """Features that tell pictures apart by colours, brightness of halves, and size."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = torch.cat([x.mean(dim=(2, 3)), x[:, :, :150].mean(dim=(2, 3)), x.square().mean(dim=(2, 3))], dim=1)
        return nn.functional.pad(found, (0, 2048 - 9))


@pytest.fixture
def weights(tmp_path):
    for name in ("inception", "i3d"):
        (tmp_path / name).mkdir()
    torch.jit.save(torch.jit.script(Pool()), tmp_path / "inception" / "fid_inception.pt")
    save_file(i3d_weights(), tmp_path / "i3d" / "i3d.safetensors")
    return tmp_path


CPU = torch.device("cpu")


def video(frames: int, height: int = 40, width: int = 56) -> Clip:
    return Clip(torch.randint(0, 256, (frames, height, width, 3), dtype=torch.uint8))


def test_pictures_are_prepared_as_torchmetrics_does(monkeypatch):
    """Up to its network's first layer, which is all of it that is there without its weights."""
    found = {}

    class Reached(Exception):
        pass

    def first_layer(x: torch.Tensor) -> torch.Tensor:
        found["x"] = x
        raise Reached

    monkeypatch.setattr(reference_fid, "vassert", lambda *_: None)
    clip = video(3).pixels
    as_constructed = {"features_list": ["2048"], "use_antialias": True, "INPUT_IMAGE_SIZE": SIDE}
    stand_in = SimpleNamespace(**as_constructed, Conv2d_1a_3x3=first_layer)
    with pytest.raises(Reached):
        reference_fid.NoTrainInceptionV3._torch_fidelity_forward(stand_in, clip.movedim(-1, 1))
    torch.testing.assert_close((antialiased(clip) - 128) / 128, found["x"], rtol=0, atol=0)


def test_the_packages_network_gives_features_and_logits(tmp_path, monkeypatch):
    """torch-fidelity's, on weights drawn at random instead of its own."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(torch, "load", lambda *_, **__: {})
        patched.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        drawn = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], "none")
    file = tmp_path / "checkpoints" / PACKAGED
    file.parent.mkdir()
    torch.save(drawn.state_dict(), file)
    with pytest.raises(UserError, match="is not the published weights-inception.*Fetch it again"):
        open_metrics(["is"], None, CPU)
    monkeypatch.setattr(networks, "KNOWN_FILES", {})
    clip = video(2)
    found = open_metrics(["is"], None, CPU, pictures=0).extractors["inception"](clip)
    drawn.use_antialias = True  # as torchmetrics has it
    features = reference_fid.NoTrainInceptionV3._torch_fidelity_forward(drawn.eval(), clip.pixels.movedim(-1, 1))[0]
    torch.testing.assert_close(found, torch.cat([features, features @ drawn.fc.weight.T], dim=1))


def test_inception_sees_the_middles_of_equal_parts(weights):
    assert [spread(16, 4), spread(9, 1), spread(3, 4), spread(5, 0)] == [
        [2, 6, 10, 14],
        [4],
        [0, 1, 2],
        [0, 1, 2, 3, 4],
    ]
    rows, clip = InceptionRows(weights, CPU, pictures=2), video(9)
    found = rows(clip)
    torch.testing.assert_close(found, Pool()((antialiased(clip.pixels[[2, 6]]) - 128) / 128))
    assert InceptionRows(weights, CPU, pictures=3).fingerprint != rows.fingerprint


def test_i3d_takes_the_whole_clip(weights):
    rows = I3DRows(weights, CPU)
    clip = video(10)
    assert rows(clip).shape == (1, 7)
    want = clip.pixels.movedim(3, 0)[None] / 127.5 - 1  # [1,3,F,H,W] in [-1,1]
    torch.testing.assert_close(rows(clip), rows.network(want))
    with pytest.raises(ClipError, match="8 frames, too few") as error:
        rows(Clip(clip.pixels[:8], name="a.mp4"))
    assert error.value.reason == "too-short" and str(error.value).startswith("a.mp4: ")


def test_missing_and_wrong_networks_are_named(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(UserError, match=r"put inception-2015-12-05.pt .* install torch-fidelity"):
        load_inception(None)
    with pytest.raises(UserError, match="put i3d_torchscript.pt .* into WEIGHTS/i3d"):
        I3DRows(None, CPU)
    (tmp_path / "junk.pt").write_bytes(b"junk")
    with pytest.raises(UserError, match="junk.pt is no TorchScript Inception network"):
        load_inception(tmp_path / "junk.pt")
    torch.save({"w": torch.zeros(1)}, tmp_path / "junk.pth")
    with pytest.raises(UserError, match=r"junk.pth (needs the package torch-fidelity|does not hold)"):
        load_inception(tmp_path / "junk.pth")


def test_scores_are_opened_by_name_or_left_out_with_the_reason(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    metrics = open_metrics(["fid", "kid", "fvd"], weights, CPU, pictures=1)
    assert list(metrics.scores) == ["fid", "kid", "fvd"] and list(metrics.extractors) == ["inception", "i3d"]
    with pytest.raises(UserError, match="is: this Inception network has no logits"):
        open_metrics(["is"], weights, CPU)
    with pytest.raises(UserError, match="no score 'fvdd': did you mean fvd"):
        open_metrics(["fvdd"], weights, CPU)
    some = open_metrics(None, None, CPU, without={"psnr": "of no use"})
    assert "put inception-2015-12-05.pt" in some.left_out["fid"] and some.left_out["psnr"] == "of no use"
    assert "flicker" in some.scores and "fid" not in some.scores and "inception" not in some.extractors
