"""Factorised and causal attention join the tokens that they say, packed as alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fused import normed_and_turned
from test_transformer import GRIDS, SMALL, assert_close, disturbed, forward, gradients, samples
from torch.nn import functional as F

from latentvid.models.attention_context import ATTENTIONS, make_contexts
from latentvid.models.compiling import compile_blocks
from latentvid.models.layers import SelfAttention, rotary_table
from latentvid.models.transformer import VideoDiT
from latentvid.packing import Packed, spans

side = st.integers(1, 4)
quick = settings(max_examples=25, deadline=None, database=None, derandomize=True)
LAYOUTS = ("factorised", "causal", "inflated")


def make(attention: str, **other) -> VideoDiT:
    torch.manual_seed(0)
    return disturbed(VideoDiT(**SMALL | other, attention=attention))


def contexts_of(attention: str, layout: Packed, rotary, backend: str = "sdpa"):
    return make_contexts(attention, layout, Packed.of_lengths([1] * layout.segments), rotary, backend)


def definition(attention: str, layout: Packed) -> list[torch.Tensor]:
    """Who attends to whom [T,T], by the tokens' places."""
    frame, row, column = layout.position.unbind(-1)

    def same(*places):
        return torch.stack([x[:, None] == x for x in places]).all(0)

    sample = same(layout.segment)
    return {
        "full": [sample],
        "factorised": [same(layout.segment, frame), same(layout.segment, row, column)],
        "causal": [sample & (frame <= frame[:, None])],
        "inflated": [same(layout.segment, frame), same(layout.segment, row, column)],
    }[attention]


@quick
@given(st.lists(st.tuples(side, side, side), min_size=1, max_size=4), st.sampled_from(ATTENTIONS))
def test_contexts_join_the_tokens_that_the_definition_names(grids, attention):
    layout = Packed.of(grids)
    rotary = rotary_table(layout.position, 12, 100.0)
    contexts, wanted = contexts_of(attention, layout, rotary), definition(attention, layout)
    for context, want in zip(contexts, wanted, strict=True):
        every = torch.arange(layout.tokens)
        queries, keys = context.arrange(every), context.arrange(every)
        assert torch.equal(context.restore(queries), every)
        assert torch.equal(context.arrange(rotary[0]), context.rotary[0]) and torch.equal(
            context.arrange(rotary[1]), context.rotary[1]
        )
        keys = keys if context.gather is None else keys[context.gather]
        found = torch.zeros(layout.tokens, layout.tokens, dtype=torch.int64)
        for q, k in zip(queries.split(context.queries.lengths), keys.split(context.keys.lengths), strict=True):
            found[q[:, None], k[None]] += 1
        assert torch.equal(found, want.long())
        for segments, total in ((context.queries, len(queries)), (context.keys, len(keys))):
            assert segments.cu_seqlens.dtype == torch.int32 and segments.cu_seqlens[-1] == total
            assert segments.cu_seqlens.diff().tolist() == segments.lengths and segments.max_len == max(segments.lengths)


@pytest.mark.parametrize("backend", ["grouped", "sdpa"])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_attention_in_a_context_is_attention_under_the_mask(attention, backend):
    layout = Packed.of(GRIDS)
    net = disturbed(SelfAttention(24, 2))
    x, rotary = torch.randn(layout.tokens, 24), rotary_table(layout.position, 12, 100.0)
    q = normed_and_turned(net.query(x).unflatten(-1, (2, 12)), net.query_norm.weight, *rotary)
    k, v = net.key_value(x).unflatten(-1, (2, 2, 12)).unbind(1)
    k = normed_and_turned(k, net.key_norm.weight, *rotary)
    contexts = contexts_of(attention, layout, rotary, backend)
    for context, mask in zip(contexts, definition(attention, layout), strict=True):
        want = F.scaled_dot_product_attention(*(y.transpose(0, 1) for y in (q, k, v)), attn_mask=mask)
        want = net.out(want.transpose(0, 1).flatten(1))
        torch.testing.assert_close(net(x, context), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["grouped", "sdpa"])
@pytest.mark.parametrize("attention", LAYOUTS)
def test_packed_equals_each_sample_alone(attention, backend):
    model = make(attention, depth=3)
    model.attention_backend = backend
    packed = forward(model, samples()).split(Packed.of(GRIDS).lengths)
    words = [len(text) for _, _, text in samples()]
    alone = [forward(model, [s], [g], [n]) for s, g, n in zip(samples(), GRIDS, words, strict=True)]
    assert_close(packed, tuple(alone))
    got, want = gradients(model, packed), gradients(model, alone)
    assert all(g.any() for g in got)
    scale = max(g.abs().max() for g in want)
    assert_close([g / scale for g in got], [g / scale for g in want])


def moved_frames(model: VideoDiT, frame: int) -> list[list[int]]:
    """Which (frame, row, column) of a clip change when the first token of one frame does."""
    grids, words = [(4, 2, 2)], [3]
    changed = samples(grids, words)
    changed[0][0][4 * frame] += 1
    difference = forward(model, changed, grids, words) - forward(model, samples(grids, words), grids, words)
    return Packed.of(grids).position[difference.abs().amax(-1) > 0].tolist()


def test_no_frame_depends_on_a_later_one_under_causal_attention():
    moved = moved_frames(make("causal"), 2)
    assert {f for f, _, _ in moved} == {2, 3} and len(moved) == 8


def test_factorised_blocks_see_space_then_time():
    first = make("factorised")
    torch.nn.init.zeros_(first.blocks[1].attention.out.weight)
    assert moved_frames(first, 1) == [[1, r, c] for r in (0, 1) for c in (0, 1)]
    second = make("factorised")
    torch.nn.init.zeros_(second.blocks[0].attention.out.weight)
    assert moved_frames(second, 1) == [[f, 0, 0] for f in range(4)]
    assert len(moved_frames(make("factorised"), 1)) == 16


def test_for_images_causal_is_full():
    full, causal = make("full"), make("causal")
    grids, words = [(1, 2, 3), (1, 4, 1)], [2, 3]
    assert full.state_dict().keys() == causal.state_dict().keys()
    assert_close(*(forward(m, samples(grids, words), grids, words) for m in (full, causal)))
    assert forward(make("factorised"), samples(grids, words), grids, words).isfinite().all()


@pytest.mark.parametrize("attention", LAYOUTS)
def test_activation_checkpointing_gives_the_same_gradients(attention):
    model = make(attention)
    want = gradients(model, [forward(model, samples())])
    model.enable_gradient_checkpointing()
    got = gradients(model, [forward(model, samples())])
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_a_models_compiled_blocks_serve_every_layout():
    """As the trainer compiles them, one graph a kind of block: none is added by other layouts."""
    model, plain = (make("factorised", depth=3) for _ in range(2))
    torch._dynamo.reset()
    compile_blocks(model, backend="eager")
    # sizes that are equal by chance when tracing would be taken for one: in the first pack all differ
    packs = (
        ([(4, 2, 3), (3, 2, 2)], [4, 5]),
        ([(5, 2, 2)] * 3 + [(2, 1, 5)], [2, 5, 3, 4]),
        ([(4, 3, 3), (1, 4, 1)], [1, 9]),
    )
    for i, (grids, words) in enumerate(packs):
        with torch._dynamo.config.patch(error_on_recompile=i > 0):
            outputs = [forward(net, samples(grids, words), grids, words) for net in (model, plain)]
            got, want = (gradients(net, [y]) for net, y in zip((model, plain), outputs, strict=True))
        assert_close(*outputs)
        scale = max(g.abs().max() for g in want)
        assert_close([g / scale for g in got], [g / scale for g in want])


@pytest.mark.parametrize("attention", LAYOUTS)
def test_pieces_of_packs_are_for_full_attention(attention):
    whole = Packed.of(GRIDS)
    piece = whole.piece(spans(whole.lengths, 2)[0])
    with pytest.raises(ValueError, match=f"{attention} attention takes whole packs.*sequence_parallel"):
        contexts_of(attention, piece, rotary_table(piece.position, 12, 100.0))


def test_the_setting_is_saved(tmp_path):
    make("causal").save_pretrained(tmp_path)
    assert VideoDiT.from_pretrained(tmp_path).config.attention == "causal"


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["torch", "grouped"])
@pytest.mark.parametrize("attention", LAYOUTS)
def test_bf16_autocast_on_cuda_is_near_fp32_on_the_cpu(attention, backend):
    model = make(attention, width=128)
    want = forward(model, samples())
    model = model.cuda()
    model.attention_backend = backend
    tokens, timestep, text = (torch.cat(part).cuda() for part in zip(*samples(), strict=True))
    text_layout = Packed.of_lengths([len(t) for _, _, t in samples()]).to("cuda")
    with torch.autocast("cuda", torch.bfloat16):
        got = model(tokens, timestep, text, Packed.of(GRIDS).to("cuda"), text_layout)
    assert (got.float().cpu() - want).norm() < 0.05 * want.norm()
