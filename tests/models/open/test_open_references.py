"""References in packs of published models, against the class's own pass over one sequence made by hand."""

import copy
from dataclasses import dataclass

import pytest
import torch
from diffusers import (
    LTX2VideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    MochiTransformer3DModel,
    WanTransformer3DModel,
)
from einops import rearrange
from open_instances import LTX, LTX2, MOCHI, WAN
from open_models import gradients, lively
from torch import Tensor

from latentvid.errors import UserError
from latentvid.models.flops import backbone_flops
from latentvid.models.open import packed
from latentvid.packing import Packed, Reference, Shape, patch_size, shapes_of

GRIDS = [(3, 4, 5), (1, 6, 3), (2, 2, 7)]
REFERENCES = [
    (Reference((3, 4, 5), "aligned"), Reference((1, 2, 3), "beside")),
    (),
    (Reference((1, 2, 7), "aligned"), Reference((2, 3, 2), "beside", 1)),
]


@dataclass
class Shown:
    """tokens [n,P] of a sample and its references, levels [R] of its latent frames, text [S,Dt]."""

    shape: Shape
    tokens: Tensor
    levels: Tensor
    text: Tensor

    @property
    def level_of_tokens(self) -> Tensor:
        sides = [h * w for f, h, w in self.shape.grids for _ in range(f)]
        return self.levels.repeat_interleave(torch.tensor(sides))


def shown(features: int) -> list[Shown]:
    rand, found = torch.Generator().manual_seed(2), []
    for shape, words in zip(shapes_of(GRIDS, REFERENCES), (7, 3, 5), strict=True):
        levels = torch.zeros(shape.frames)
        levels[: shape.grid[0]] = 0.1 + 0.8 * torch.rand((), generator=rand)
        tokens = torch.randn(shape.tokens, features, generator=rand)
        found.append(Shown(shape, tokens, levels, torch.randn(words, 24, generator=rand)))
    return found


def by_hand(shape: Shape) -> list[tuple[int, int, int]]:
    """Positions, written out for the roles and sizes here."""
    (f, h, w), found = shape.grid, []
    found += [(i, r, c) for i in range(f) for r in range(h) for c in range(w)]
    for grid, place, role in shape.references:
        start = 0 if place == "aligned" else f + 8 * role
        found += [(start + i, r, c) for i in range(grid[0]) for r in range(grid[1]) for c in range(grid[2])]
    return found


def wan_alone(raw, s: Shown) -> Tensor:
    """The class over the tokens in one row, with the rows of its own tables that their positions name, and a level
    each token, as it has for Wan 2.2 5B."""
    rope, places = raw.rope, torch.tensor(by_hand(s.shape))
    sizes = [rope.t_dim, rope.h_dim, rope.w_dim]
    tables = [
        torch.cat([part[places[:, i]] for i, part in enumerate(table.split(sizes, dim=1))], dim=1)[None, :, None]
        for table in (rope.freqs_cos, rope.freqs_sin)
    ]
    rope.forward = lambda _: tuple(tables)
    row = rearrange(s.tokens, "T (C p q) -> 1 C 1 p (T q)", p=2, q=2)
    out = raw(row, 1000 * s.level_of_tokens[None], s.text[None], return_dict=False)[0]
    return rearrange(out, "1 C 1 p (T q) -> T (C p q)", q=2)


def ltx_alone(raw, s: Shown) -> Tensor:
    """The class with coordinates of each token in seconds and pixels, at 25 frames a second."""
    places = torch.tensor(by_hand(s.shape), dtype=torch.float32).T
    coords = torch.stack([places[0] * (8 / 25), places[1] * 32, places[2] * 32])[None]
    mask = torch.ones(1, len(s.text)).long()
    levels = 1000 * s.level_of_tokens[None]
    return raw(s.tokens[None], s.text[None], levels, mask, video_coords=coords, return_dict=False)[0][0]


def ltx2_alone(raw, s: Shown) -> Tensor:
    """The video half with the bounds of each token in seconds and pixels, at 24 frames a second."""
    places = torch.tensor(by_hand(s.shape), dtype=torch.float32).T
    bounds = torch.stack([places, places + 1], dim=-1) * torch.tensor([8.0, 32.0, 32.0])[:, None, None]
    bounds[0] = (bounds[0] - 7).clamp_min(0) / 24
    level = 1000 * s.levels.max()[None]
    text = s.text[None]
    out, _ = raw(
        s.tokens[None],
        torch.ones(1, 2, 3),
        text,
        text,
        timestep=1000 * s.level_of_tokens[None],
        audio_timestep=level,
        sigma=level,
        video_coords=bounds[None],
        audio_num_frames=2,
        isolate_modalities=True,
        return_dict=False,
    )
    return out[0]


CLASSES = {
    "wan": (lambda: WanTransformer3DModel(**WAN, in_channels=4, out_channels=4), wan_alone),
    "ltx": (lambda: LTXVideoTransformer3DModel(**LTX, caption_channels=24), ltx_alone),
    "ltx2": (lambda: LTX2VideoTransformer3DModel(**LTX, **LTX2, caption_channels=24), ltx2_alone),
}


def run(model, made: list[Shown]) -> list[Tensor]:
    layout = Packed.of([s.shape.grid for s in made], [s.shape.references for s in made])
    tokens, levels, text = (torch.cat([getattr(s, name) for s in made]) for name in ("tokens", "levels", "text"))
    out = model(tokens, levels, text, layout, Packed.of_lengths([len(s.text) for s in made]))
    return layout.own(out)


@pytest.mark.parametrize("family", CLASSES)
def test_packed_equals_the_class_alone(family):
    make, alone = CLASSES[family]
    raw = lively(make())
    model = packed(copy.deepcopy(raw))
    made = shown(4 * patch_size(model.patch))
    got = run(model, made)
    want = [alone(raw, s)[: len(y)] for s, y in zip(made, got, strict=True)]
    size = max(float(y.detach().abs().max()) for y in want)
    assert size > 0.1
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * max(1.0, size))
    wanted, found = gradients(raw, want), gradients(model.raw, got)
    if family != "ltx2":  # whose other half has gradients there
        assert found.keys() == wanted.keys()
    error = sum(float((g - wanted[n]).square().sum()) for n, g in found.items())
    assert (error / sum(float(wanted[n].square().sum()) for n in found)) ** 0.5 < 1e-5


def test_what_is_not_exact_is_refused_by_name():
    wan = packed(CLASSES["wan"][0]())
    scaled = Shape((3, 4, 6), (Reference((3, 2, 3), "aligned"),))
    with pytest.raises(UserError, match="wan has positions of whole numbers alone: .*max_area: null"):
        wan.check_references([scaled])
    with pytest.raises(UserError, match="wan has 1024 positions along an axis"):
        wan.check_references([Shape((3, 4, 6), (Reference((1022, 1, 1)),))])
    packed(CLASSES["ltx"][0]()).check_references([scaled])
    with pytest.raises(UserError, match="ltx2 has positions of tokens of one size alone"):
        packed(CLASSES["ltx2"][0]()).check_references([scaled])
    made = shown(4 * 4)
    of_pictures = packed(WanTransformer3DModel(**WAN, in_channels=9, out_channels=4))
    with pytest.raises(UserError, match="this wan model reads 5 channels beside the latents, which references lack"):
        run(of_pictures, made)
    with pytest.raises(UserError, match="mochi has no noise levels, or no positions, for the tokens of references"):
        run(packed(MochiTransformer3DModel(**MOCHI)), made)


def test_flops_count_them():
    model = packed(CLASSES["wan"][0]())
    more = backbone_flops(model, GRIDS, [7, 3, 5], REFERENCES) - backbone_flops(model, GRIDS, [7, 3, 5])
    assert more > 0
    # a reference of a picture costs what a further latent frame of that size would, in any place
    grown = backbone_flops(model, [(4, 4, 5)], [7])
    assert backbone_flops(model, [(3, 4, 5)], [7], [(Reference((1, 4, 5)),)]) == grown
