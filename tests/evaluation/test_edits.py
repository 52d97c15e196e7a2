"""Scores of edits: each measure against its definition on clips of which the answer is known, and the command."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from torch import nn

from latentvid.data.video.writing import write_video
from latentvid.demo.digits import Label, render
from latentvid.demo.edits import judged
from latentvid.errors import UserError
from latentvid.evaluation.__main__ import main
from latentvid.evaluation.edits.measures import (
    Edited,
    flow_error,
    lpips_outside,
    psnr_outside,
    self_similarity,
    structure,
    structure_distance,
)
from latentvid.evaluation.edits.scoring import EditsConfig, score_edits
from latentvid.evaluation.vbench.consistency import Dino


def clip(frames: int = 3, side: int = 32, seed: int = 0) -> torch.Tensor:
    rand = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, side, side, 3), generator=rand, dtype=torch.uint8)


def half(frames: int = 3, side: int = 32) -> torch.Tensor:
    mask = torch.zeros(frames, side, side, dtype=torch.bool)
    mask[:, :, side // 2 :] = True
    return mask


def test_psnr_sees_what_is_outside_of_the_mask_alone():
    source, mask = clip(), half()
    made = torch.where(mask[..., None], 255 - source, source)
    assert psnr_outside(source, made, mask) == 100 and psnr_outside(source, made) < 10
    made = torch.where(mask[..., None], source, (source.int() ^ 1).byte())  # off by one outside
    assert psnr_outside(source, made, mask) == pytest.approx(20 * math.log10(255))
    assert math.isnan(psnr_outside(source, made, torch.ones_like(mask)))


def test_lpips_sees_what_is_outside_of_the_mask_alone_and_by_its_area():
    class Distance(nn.Module):
        net = "alex"

        def forward(self, a, b):
            return (a - b).abs().mean((1, 2, 3))

    source, mask = clip(), half()
    inside = torch.where(mask[..., None], 255 - source, source)
    outside = torch.where(mask[..., None], source, (source.int() ^ 1).byte())
    assert lpips_outside(Distance(), source, inside, mask) == 0
    assert lpips_outside(Distance(), source, outside, mask) == pytest.approx(2 / 255, rel=1e-3)
    assert math.isnan(lpips_outside(Distance(), source, outside, torch.ones_like(mask)))


def test_structure_is_the_difference_of_self_similarities_pair_by_pair():
    a, b = (torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    want = []
    for x, y in zip(a, b, strict=True):
        total = 0.0
        for i in range(5):
            for j in range(5):
                cosines = [float(z[i] @ z[j] / z[i].norm() / z[j].norm()) for z in (x, y)]
                total += (cosines[0] - cosines[1]) ** 2
        want.append(total / 25)
    assert structure_distance(a, b).tolist() == pytest.approx(want, rel=1e-4)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(2))).Q
    assert structure_distance(a, 3 * a @ turn).max() < 1e-10  # another look, the same structure
    assert self_similarity(a).diagonal(dim1=1, dim2=2).sub(1).abs().max() < 1e-5


def test_structures_features_are_the_keys_of_the_last_layer():
    torch.manual_seed(0)
    network = Dino(width=32, depth=2, heads=2).eval()
    nn.init.normal_(network.vit.pos_embed)
    picture, seen = torch.randn(1, 3, 32, 48), []
    attention = network.vit.blocks[-1].attn
    attention.qkv.register_forward_hook(lambda module, given, out: seen.append(out))
    network(picture)
    (of_pass,) = seen
    with torch.no_grad():
        assert torch.equal(network.keys(picture), of_pass[..., 32:64]) and of_pass.shape[1] == 1 + 2 * 3
    measure = structure(network)
    assert measure.of(Edited(clip(), clip()))["structure"] == 0
    assert measure.of(Edited(clip(), clip(seed=1)))["structure"] > 0


def test_flicker_is_by_the_flow_of_the_source():
    class Right:
        """All moves one pixel to the right."""

        device, method = torch.device("cpu"), "right"

        def __call__(self, a, b):
            way = 1.0 if torch.equal(a, source[0]) else -1.0
            return torch.stack([torch.full(a.shape[:2], way), torch.zeros(a.shape[:2])], -1)

    first = clip(1)[0]
    source = torch.stack([first, first.roll(1, 1)])
    along, still = 255 - source, torch.stack([255 - first, 255 - first])
    made, own = flow_error(Right(), source, along)
    assert own < 1e-6 and made < 1e-6
    made, own = flow_error(Right(), source, still)  # moves otherwise than its source
    assert own < 1e-6 and made > 0.1


def test_the_demos_judge_wants_the_digit_and_the_path():
    one = render(Label(1, "red", "moves", "right"), 17, (32, 32), np.random.default_rng(0), heldout=True)
    right, wrong = "a red 1 moves right", "a red 7 moves right"
    want = {"digit": 1.0, "path": 1.0, "digit_and_path": 1.0}
    assert judged(Edited(one, one, target_text=right)) == want
    assert judged(Edited(one, one, target_text=wrong)) == want | {"digit": 0.0, "digit_and_path": 0.0}
    assert judged(Edited(one, one.flip(0), target_text=right)) == want | {"path": 0.0, "digit_and_path": 0.0}
    assert judged(Edited(one, one)) == {}
    with pytest.raises(UserError, match="no caption of the demo"):
        judged(Edited(one, one, target_text="a horse"))


@pytest.fixture
def folders(tmp_path):
    """clips of three frames, edits that change the right half, edits that change all, masks of the right half."""
    for name in ("clips", "local", "all", "masks"):
        (tmp_path / name).mkdir()
    mask = half()
    for i in range(3):
        source = clip(seed=i)
        write_video(tmp_path / "clips" / f"{i}.png", source[:1], 8)
        write_video(tmp_path / "local" / f"{i}.png", torch.where(mask[..., None], 255 - source, source)[:1], 8)
        write_video(tmp_path / "all" / f"{i}.png", 255 - source[:1], 8)
        write_video(tmp_path / "masks" / f"{i}.png", mask[:1, ..., None].expand(-1, -1, -1, 3).byte() * 255, 8)
    return tmp_path


def test_a_table_a_method_and_one_of_all(folders, monkeypatch, capsys):
    words = ["edit", folders / "clips", folders / "local", folders / "all", "--masks", folders / "masks"]
    monkeypatch.setattr(sys, "argv", ["evaluation", *map(str, words), "--out", str(folders / "out")])
    main()
    said = capsys.readouterr().out
    found = json.loads((folders / "out" / "edits.json").read_text())
    assert found["methods"]["local"]["psnr"]["clips"] == [100.0] * 3 and found["outside_of_masks"]
    assert found["methods"]["all"]["psnr"]["mean"] < 10
    low, high = found["methods"]["all"]["psnr"]["interval"]
    assert low < found["methods"]["all"]["psnr"]["mean"] < high
    page = (folders / "out" / "edits.md").read_text()
    assert "## local" in page and "## all" in page and "| local | 100 |" in page
    assert "outside of the masks" in said and "structure left out" in said


def test_folders_that_do_not_fit_are_refused_by_name(folders):
    config = {"clips": folders / "clips", "edited": [folders / "local"], "out": folders / "out"}
    write_video(folders / "local" / "2.png", clip(1, 16), 8)
    with pytest.raises(UserError, match="2.png has 1 frame of 16 x 16 pixels, .* as long and large"):
        score_edits(EditsConfig(**config))
    (folders / "local" / "2.png").unlink()
    with pytest.raises(UserError, match="local lacks 1 clip of .*clips .such as 2"):
        score_edits(EditsConfig(**config))
    with pytest.raises(UserError, match="give other names"):
        score_edits(EditsConfig(**config | {"edited": [folders / "local"] * 2}))
