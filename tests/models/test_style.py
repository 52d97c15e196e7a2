"""Shared attention against its formulas, written out sample by sample."""

import math

import pytest
import torch
from torch import Tensor

from latentvid.errors import UserError
from latentvid.models.layers import apply_rotary, rotary_table
from latentvid.models.style import Pair, StyleAligned, shared_attentions, with_statistics
from latentvid.models.transformer import VideoDiT
from latentvid.packing import Packed

GRIDS = [(3, 2, 2), (1, 2, 3), (2, 1, 2)]  # a clip, the picture whose look it takes, another clip
LAYOUT, PAIRS = Packed.of(GRIDS), [Pair(0, 1)]


def model(attention: str = "full") -> VideoDiT:
    torch.manual_seed(0)
    found = VideoDiT(latent_channels=3, patch=1, width=24, depth=2, heads=2, text_width=8, attention=attention).eval()
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return found


def run(net: VideoDiT, tokens: Tensor, times: int = 1, layout: Packed = LAYOUT) -> Tensor:
    text = torch.ones(layout.segments * times, 8)
    words = Packed.of_lengths([1] * layout.segments * times)
    return net(tokens.repeat(times, 1), torch.full((layout.frames * times,), 0.5), text, layout.repeated(times), words)


def tokens(layout: Packed = LAYOUT) -> Tensor:
    return torch.randn(layout.tokens, 3, generator=torch.Generator().manual_seed(1))


def written_out(module, x: Tensor, scale: float, sees) -> Tensor:
    """Attention of the first sample to its tokens that `sees(frame)` names and to those of the second, token by token.

    Logits of own keys turn by rotary positions, those of the picture's keys do not.
    """
    clip, picture = x[:12], x[12:18]
    q, (k, v) = module.queries(clip), module.keys_values(clip)
    other, (shown, values) = module.queries(picture), module.keys_values(picture)
    q, k = (
        (a - a.mean(0)) / (a.var(0, correction=0) + 1e-5).sqrt() * (b.var(0, correction=0) + 1e-5).sqrt() + b.mean(0)
        for a, b in ((q, other), (k, shown))
    )
    position, found = torch.from_numpy(LAYOUT.position[:12].numpy()), []
    turned, keys = (apply_rotary(a, rotary_table(position, 12, 10_000.0)) for a in (q, k))
    for i in range(12):
        near = torch.tensor([j for j in range(12) if sees(i // 4, j // 4)])
        own = (keys[near] * turned[i]).sum(-1)  # [n,A]
        logits = torch.cat([own, scale * (shown * q[i]).sum(-1)]) / math.sqrt(12)
        found.append((logits.softmax(0)[..., None] * torch.cat([v[near], values])).sum(0))
    return module.out(torch.stack(found).flatten(-2))


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize(
    ("attention", "sees"),
    [
        ("full", lambda a, b: True),
        ("factorised", lambda a, b: a == b),
        ("causal", lambda a, b: b <= a),
    ],
)
@torch.no_grad()
def test_a_clip_attends_to_its_picture_beside_its_own_tokens(attention, sees, scale):
    net, seen = model(attention), []
    shared = StyleAligned(net, GRIDS, PAIRS, scale=scale)
    attend = shared._attend
    shared._attend = lambda module, x, context: seen.append((module, x, attend(module, x, context))) or seen[-1][2]
    with shared.acting():
        run(net, tokens())
    module, x, made = seen[0]
    torch.testing.assert_close(made[:12], written_out(module, x, scale, sees), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attention", ["full", "factorised", "causal", "inflated"])
@torch.no_grad()
def test_pictures_and_clips_without_one_are_as_ever_and_so_is_the_model_after(attention):
    net, x = model(attention), tokens()
    before = run(net, x)
    with StyleAligned(net, GRIDS, PAIRS).acting():
        inside = run(net, x)
    torch.testing.assert_close(inside[12:], before[12:], rtol=1e-4, atol=1e-5)
    assert (inside[:12] - before[:12]).abs().max() > 1e-2
    assert torch.equal(run(net, x), before)


@torch.no_grad()
def test_both_branches_of_guidance_share_in_themselves():
    net, x = model(), tokens()
    shared = StyleAligned(net, GRIDS, PAIRS)
    with shared.acting():
        once, twice = run(net, x), run(net, x, 2)
    torch.testing.assert_close(twice, once.repeat(2, 1), rtol=1e-4, atol=1e-5)


def test_statistics_are_those_of_the_other():
    x, of = torch.randn(50, 2, 4), 3 * torch.randn(20, 2, 4) + 1
    found = with_statistics(x, of)
    torch.testing.assert_close(found.mean(0), of.mean(0), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.std(0, correction=0), of.std(0, correction=0), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(with_statistics(x, x), x, rtol=1e-3, atol=1e-4)


def test_other_models_are_refused():
    with pytest.raises(UserError, match="shares the attention of VideoDiT, and this model is Linear"):
        shared_attentions(torch.nn.Linear(2, 2))
