"""A pass with cached frames is one over whole clips; what is kept is bounded, and what does not fit is refused."""

import pytest
import torch
from test_attention_layouts import make
from test_transformer import assert_close, samples

from latentvid.models.compiling import compile_blocks
from latentvid.models.key_value_cache import KeyValueCache
from latentvid.packing import Packed

TOTAL = [(6, 2, 2), (4, 3, 2), (6, 2, 2), (5, 1, 4)]  # whole clips; the third is the first with another text
PASSES = [(2, 1, 2, 3), (1, 2, 1, 1), (3, 1, 3, 1)]  # frames of each in turn
WORDS = [4, 1, 3, 2]
FPS = torch.tensor([12.0, 24.0, 12.0, 0.0])


def clips():
    """(tokens, text) of each sample; the first and third are one clip under two texts, as guidance has them."""
    made = samples(TOTAL, WORDS)
    made[2] = (made[0][0], *made[2][1:])
    return [(tokens, text) for tokens, _, text in made]


def run(model, begin, counts, levels, cache=None):
    """The model on frames [begin, begin + count) of each clip, at so many noise levels; a list of outputs [T,P]."""
    tokens = [
        c[0].unflatten(0, (g[0], -1))[b : b + n].flatten(0, 1)
        for c, g, b, n in zip(clips(), TOTAL, begin, counts, strict=True)
    ]
    layout = Packed.of([(n, h, w) for n, (_, h, w) in zip(counts, TOTAL, strict=True)])
    text = torch.cat([c[1] for c in clips()])
    out = model(torch.cat(tokens), torch.cat(levels), text, layout, Packed.of_lengths(WORDS), cache=cache, fps=FPS)
    return out.split(layout.lengths)


def rollout(model, cache, keep=None):
    """Denoises and then records the frames of each pass; what was predicted for them."""
    begin, predictions, levels = (
        [0] * 4,
        [],
        [torch.rand(n, generator=torch.Generator().manual_seed(5)) for n in PASSES[2]],
    )
    for counts in PASSES:
        t = [level[:n] if n <= len(level) else torch.full((n,), 0.5) for level, n in zip(levels, counts, strict=True)]
        predictions.append((list(begin), counts, t, run(model, begin, counts, t, cache)))
        with cache.recording():
            run(model, begin, counts, [torch.zeros(n) for n in counts], cache)
        begin = [b + n for b, n in zip(begin, counts, strict=True)]
        if keep:
            cache.keep(**keep)
    return predictions


@pytest.mark.parametrize(
    ("backend", "options"),
    [("grouped", {}), ("sdpa", {}), ("sdpa", {"fps_condition": True, "rope_fps": 24.0, "temporal_stride": 4})],
)
@torch.no_grad()
def test_a_pass_with_a_cache_is_a_pass_over_all_frames(backend, options):
    model = make("causal", depth=3, **options)
    model.attention_backend = backend
    cache = KeyValueCache()
    for begin, counts, levels, got in rollout(model, cache):
        every = [torch.cat([torch.zeros(b), t]) for b, t in zip(begin, levels, strict=True)]
        whole = run(model, [0] * 4, [b + n for b, n in zip(begin, counts, strict=True)], every)
        want = tuple(y[-len(part) :] for y, part in zip(whole, got, strict=True))
        assert_close(got, want)
        assert not torch.allclose(got[0], got[2], atol=1e-3)  # another text
    assert cache.seen == [f for f, _, _ in TOTAL] and cache.lengths == [f * h * w for f, h, w in TOTAL]


def test_reading_leaves_the_cache_as_it_is_and_gradients_reach_the_new_frames():
    model, cache = make("causal"), KeyValueCache()
    zeros = [torch.zeros(2), torch.zeros(1), torch.zeros(2), torch.zeros(3)]
    with cache.recording():
        run(model, [0] * 4, PASSES[0], zeros, cache)
    before = [block.keys.clone() for block in cache.blocks]
    assert not any(block.keys.requires_grad or block.values.requires_grad for block in cache.blocks)
    new, text = torch.randn(4, 12, requires_grad=True), clips()[0][1]
    one, lengths = cache.select([0]), Packed.of_lengths([4])
    for checkpointing in (False, True):
        model.gradient_checkpointing = checkpointing
        cached = model(new, torch.full((1,), 0.4), text, Packed.of([(1, 2, 2)]), lengths, cache=one)
        past = clips()[0][0][:8]
        whole = model(torch.cat([past, new]), torch.tensor([0, 0, 0.4]), text, Packed.of([(3, 2, 2)]), lengths)[8:]
        assert_close(*(torch.autograd.grad(y.square().sum(), new)[0] for y in (cached, whole)))
    assert cache.seen == [2, 1, 2, 3] and one.seen == [2] and one.lengths == [8]
    assert all(torch.equal(block.keys, b) for block, b in zip(cache.blocks, before, strict=True))


@torch.no_grad()
def test_keep_bounds_memory_and_leaves_the_frames_that_it_says():
    model, cache, whole = make("causal"), KeyValueCache(), KeyValueCache()
    rollout(model, whole)
    rollout(model, cache, keep={"last": 2, "first": 1})
    assert cache.frames == [[0, 4, 5], [0, 2, 3], [0, 4, 5], [0, 3, 4]] and cache.seen == whole.seen
    for block in cache.blocks:
        for held in (block.keys, block.values):
            assert held.shape[0] == sum(cache.lengths) == 3 * (4 + 6 + 4 + 4)
            assert held.untyped_storage().nbytes() == held.numel() * held.element_size()
    # the first block's keys are of their own tokens alone: the same whatever was dropped
    for n, (mine, all_) in enumerate(
        zip(cache.blocks[0].keys.split(cache.lengths), whole.blocks[0].keys.split(whole.lengths), strict=True)
    ):
        frames = all_.unflatten(0, (len(whole.frames[n]), -1))[cache.frames[n]]
        assert_close(mine, frames.flatten(0, 1))
    cache.keep(last=0)
    assert cache.lengths == [0] * 4 and all(len(block.keys) == 0 for block in cache.blocks)
    assert run(model, [0] * 4, PASSES[0], [torch.zeros(n) for n in PASSES[0]], cache)[0].isfinite().all()


@torch.no_grad()
def test_dropped_frames_shift_no_position():
    """With one block a frame's keys are its own, and rotary scores are relative: only the last frames count."""
    model, cache, short = make("causal", depth=1), KeyValueCache(), KeyValueCache()
    begins, counts = [3, 1, 3, 2], (2, 2, 2, 2)
    zeros = [torch.zeros(2)] * 4
    with cache.recording():
        run(model, [0] * 4, begins, [torch.zeros(n) for n in begins], cache)
        run(model, begins, counts, zeros, cache)
    cache.keep(last=2)
    with short.recording():
        run(model, begins, counts, zeros, short)
    last, level = [5, 3, 5, 4], [torch.full((1,), 0.6)] * 4
    assert_close(*(run(model, last, (1, 1, 1, 1), level, c) for c in (cache, short)))


@torch.no_grad()
def test_samples_can_be_selected_and_go_on_alone():
    model, cache = make("causal"), KeyValueCache()
    assert cache.select([0]).lengths is None
    rollout(model, cache)
    picked = cache.select([3, 1])
    assert picked.shapes == [(1, 4), (3, 2)] and picked.seen == [5, 4] and picked.lengths == [20, 24]
    split = {n: part for n, part in enumerate(cache.blocks[1].values.split(cache.lengths))}
    assert torch.equal(picked.blocks[1].values, torch.cat([split[3], split[1]]))


@torch.no_grad()
def test_a_cache_serves_another_precision():
    model, cache = make("causal"), KeyValueCache()
    zeros = [torch.zeros(n) for n in PASSES[0]]
    with torch.autocast("cpu", torch.bfloat16), cache.recording():
        run(model, [0] * 4, PASSES[0], zeros, cache)
    assert cache.blocks[0].keys.dtype == torch.bfloat16
    got = torch.cat(run(model, PASSES[0], PASSES[1], [torch.full((n,), 0.5) for n in PASSES[1]], cache))
    assert got.dtype == torch.float32 and got.isfinite().all()


@torch.no_grad()
def test_compiled_blocks_read_and_record_without_recompiling():
    model, plain = make("causal"), make("causal")
    torch._dynamo.reset()
    compile_blocks(model, backend="eager")
    caches = KeyValueCache(), KeyValueCache()
    predictions = [rollout(net, cache) for net, cache in zip((model, plain), caches, strict=True)]
    for (_, _, _, got), (_, _, _, want) in zip(*predictions, strict=True):
        assert_close(got, want)
    levels = [torch.full((n,), 0.3) for n in (1, 1, 1, 1)]
    with torch._dynamo.config.patch(error_on_recompile=True):
        caches[0].keep(last=3)
        run(model, [0] * 4, (1, 1, 1, 1), levels, caches[0])


@torch.no_grad()
def test_what_does_not_fit_a_cache_is_refused_and_leaves_it_as_it_was():
    model, cache = make("causal"), KeyValueCache()
    zeros = [torch.zeros(n) for n in PASSES[0]]
    for attention in ("full", "factorised"):
        with pytest.raises(ValueError, match=f"a cache of past frames needs causal attention.*{attention}"):
            run(make(attention), [0] * 4, PASSES[0], zeros, cache)
    with pytest.raises(RuntimeError), cache.recording():
        run(model.double(), [0] * 4, PASSES[0], zeros, cache)
    assert cache.lengths is None and not cache.records
    model = model.float()
    with cache.recording():
        run(model, [0] * 4, PASSES[0], zeros, cache)
    with pytest.raises(
        ValueError, match=r"tokens \[\(2, 2\)\] for cached samples of \[\(2, 2\), .*give the same samples"
    ):
        model(
            torch.randn(4, 12),
            torch.zeros(1),
            torch.randn(3, 10),
            Packed.of([(1, 2, 2)]),
            Packed.of_lengths([3]),
            cache,
        )
    with pytest.raises(ValueError, match="a cache of 2 blocks for a model of 3"):
        run(make("causal", depth=3), [0] * 4, PASSES[0], zeros, cache)
    with pytest.raises(ValueError, match="last -1 and first 0 must not be negative"):
        cache.keep(last=-1)
