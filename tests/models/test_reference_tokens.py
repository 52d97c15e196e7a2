"""Tokens of references in a sample's segment: packed equals alone, what they do to a sample, what refuses them."""

import copy
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from open_models import PieceGroup
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from latentvid.models.attention_context import attended_pairs
from latentvid.models.flops import dit_flops
from latentvid.models.key_value_cache import KeyValueCache
from latentvid.models.transformer import VideoDiT
from latentvid.packing import Packed, Reference, shapes_of, spans

SMALL = dict(latent_channels=3, patch=2, width=24, depth=2, heads=2, text_width=10)
GRIDS = [(3, 2, 4), (1, 3, 2), (2, 1, 4), (3, 2, 4)]
WORDS = [4, 1, 3, 2]
REFERENCES = [
    (Reference((3, 2, 4), "aligned"), Reference((1, 2, 3), "beside")),
    (),
    (Reference((2, 3, 1), "beside", 1),),
    (Reference((3, 1, 2), "aligned"), Reference((1, 1, 1), "beside"), Reference((2, 2, 2), "beside")),
]
Part = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def model() -> VideoDiT:
    torch.manual_seed(1)
    model = VideoDiT(**SMALL, rope_fps=8.0, temporal_stride=4)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def parts() -> list[Part]:
    """(tokens, noise levels, text) of each sample; the latent frames of its references are at level 0."""
    rand, found = torch.Generator().manual_seed(2), []
    for shape, n in zip(shapes_of(GRIDS, REFERENCES), WORDS, strict=True):
        levels = torch.zeros(shape.frames)
        levels[: shape.grid[0]] = torch.rand(shape.grid[0], generator=rand)
        tokens = torch.randn(shape.tokens, 12, generator=rand)
        found.append((tokens, levels, torch.randn(n, 10, generator=rand)))
    return found


def forward(model: VideoDiT, found: list[Part], grids=GRIDS, references=REFERENCES) -> list[Tensor]:
    """Of each sample's own tokens."""
    tokens, levels, text = (torch.cat(part) for part in zip(*found, strict=True))
    layout = Packed.of(grids, references)
    fps = torch.tensor([8.0, 0.0, 12.0, 24.0])[: len(grids)]
    words = Packed.of_lengths([len(words) for _, _, words in found])
    return layout.own(model(tokens, levels, text, layout, words, fps=fps))


def gradients(model: VideoDiT, outputs: list[Tensor]) -> list[Tensor]:
    loss = sum((y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum() for y in outputs)
    return torch.autograd.grad(loss, list(model.parameters()))


def test_packed_equals_each_sample_alone(model):
    """With references and without, of several sizes and places, outputs and gradients."""
    model.config.rope_fps = None  # so that a sample alone needs no rate
    packed = forward(model, parts())
    alone = [forward(model, [p], [g], [r])[0] for p, g, r in zip(parts(), GRIDS, REFERENCES, strict=True)]
    assert [len(y) for y in packed] == [24, 6, 8, 24]
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)
    got, want = gradients(model, packed), gradients(model, alone)
    scale = max(g.abs().max() for g in want)
    torch.testing.assert_close([g / scale for g in got], [g / scale for g in want], rtol=1e-5, atol=1e-5)


def test_processes_that_share_a_pack_do_what_one_does(model):
    """Pieces cut samples, and references of samples, anywhere; outputs and gradients."""
    model.double()
    whole = Packed.of(GRIDS, REFERENCES)
    tokens, levels, text = (torch.cat(part).double() for part in zip(*parts(), strict=True))
    fps = torch.tensor([8.0, 0.0, 12.0, 24.0])
    want = model(tokens, levels, text, whole, Packed.of_lengths(WORDS), fps=fps)
    barrier, baton, board = threading.Barrier(2, timeout=100), threading.Lock(), [None] * 2

    def run(rank: int) -> Tensor:
        span = spans(whole.lengths, 2)[rank]
        rows = (whole.frame_segment >= span.first) & (whole.frame_segment < span.last)
        words = Packed.of_lengths(WORDS[span.first : span.last])
        own, here = copy.copy(model), slice(span.start, span.stop)
        own.sequence = PieceGroup(rank, board, barrier, baton)
        of_text = torch.cat(text.split(WORDS)[span.first : span.last])
        with baton:
            rates = fps[span.first : span.last]
            return own(tokens[here], levels[rows], of_text, whole.piece(span), words, fps=rates)

    with ThreadPoolExecutor(2) as pool:
        got = torch.cat(list(pool.map(run, range(2))))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    found = [gradients(model, list(y.split(whole.lengths))) for y in (got, want)]
    torch.testing.assert_close(*found, rtol=0, atol=1e-8)


def test_positions_written_out():
    layout = Packed.of(GRIDS, REFERENCES)
    first, _, third, last = layout.position.split(layout.lengths)
    assert torch.equal(first[:24], first[24:48])  # aligned, of one size
    assert first[48:].tolist() == [[3, r, c] for r in range(2) for c in range(3)]  # after 3 frames
    assert third[8:].tolist() == [[2 + 8 + f, r, 0] for f in range(2) for r in range(3)]  # the second role's place
    # (3,1,2) over (3,2,4): the middle of the two rows, and of each half of the columns
    assert last[24:30].tolist() == [[f, 0.5, c] for f in range(3) for c in (0.5, 2.5)]
    assert last[30:31].tolist() == [[3, 0, 0]] and last[31:, 0].tolist() == [4] * 4 + [5] * 4
    for shape, position in zip(layout.shapes, layout.position.split(layout.lengths), strict=True):
        start = shape.tokens - sum(math.prod(grid) for grid in shape.grids[1:])
        for reference in shape.references:
            n = math.prod(reference.grid)
            others = torch.cat([position[:start], position[start + n :]])
            shared = [bool((others == p).all(1).any()) for p in position[start : start + n]]
            assert not any(shared) or reference.place == "aligned"  # nothing else stands where one beside is
            start += n


def test_a_sample_sees_its_own_references_and_nobody_elses(model):
    before, changed = forward(model, parts()), parts()
    changed[0][0][-1] += 1.0  # the last token of the first sample's last reference
    after = forward(model, changed)
    assert (after[0] - before[0]).abs().max() > 1e-4
    assert all(torch.equal(a, b) for a, b in zip(after[1:], before[1:], strict=True))


def test_no_references_are_no_references():
    plain, empty = Packed.of(GRIDS), Packed.of(GRIDS, [()] * 4)
    assert empty.references == plain.references == ()
    for name, value in vars(plain).items():
        other = getattr(empty, name)
        assert torch.equal(value, other) if isinstance(value, Tensor) else value == other
    assert plain.position.dtype == torch.int64


@pytest.mark.parametrize("kind", ["factorised", "causal"])
def test_other_attention_refuses_them(kind):
    model = VideoDiT(**SMALL | {"attention": kind})
    assert f"model.attention is {kind}" in model.no_references
    with pytest.raises(ValueError, match=f"{kind} attention has no place for references"):
        forward(model, parts())
    if kind == "causal":
        tokens, levels, text = (torch.cat(part) for part in zip(*parts(), strict=True))
        with pytest.raises(ValueError, match="a cache of past frames has no place for references"):
            model(tokens, levels, text, Packed.of(GRIDS, REFERENCES), Packed.of_lengths(WORDS), cache=KeyValueCache())


def test_flops_count_them(model):
    model.attention_backend = "sdpa"
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward(model, parts())
    assert dit_flops(model.config, GRIDS, WORDS, REFERENCES) == counter.get_total_flops()
    assert dit_flops(model.config, GRIDS, WORDS) < counter.get_total_flops()
    assert attended_pairs("full", 2, GRIDS[0], REFERENCES[0]) == 2 * (24 + 24 + 6) ** 2
