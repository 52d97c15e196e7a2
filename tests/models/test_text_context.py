"""Text that is read once: the same predictions as by text states, whatever the pass, precision or backend."""

import pytest
import torch

from latentvid.models.compiling import compile_blocks
from latentvid.models.text_context import TextContext
from latentvid.models.transformer import VideoDiT
from latentvid.packing import Packed

SMALL = dict(latent_channels=3, patch=2, width=24, depth=2, heads=2, text_width=10)
GRIDS, WORDS = [(3, 2, 2), (1, 3, 2), (2, 1, 4)], [4, 1, 17]


def make(attention: str = "full", **arguments) -> VideoDiT:
    torch.manual_seed(1)
    model = VideoDiT(**SMALL | {"attention": attention} | arguments)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def inputs(seed: int, grids=GRIDS) -> tuple[torch.Tensor, torch.Tensor, Packed]:
    """Tokens, noise levels, layout."""
    layout, rand = Packed.of(grids), torch.Generator().manual_seed(seed)
    return torch.randn(layout.tokens, 12, generator=rand), torch.rand(layout.frames, generator=rand), layout


TEXT, TEXT_LAYOUT = torch.randn(sum(WORDS), 10, generator=torch.Generator().manual_seed(0)), Packed.of_lengths(WORDS)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["full", "factorised", "causal"])
@pytest.mark.parametrize("backend", ["grouped", "sdpa"])
def test_passes_of_other_levels_tokens_and_grids_are_those_by_text_states(attention, backend):
    model, context = make(attention), TextContext(TEXT)
    model.attention_backend = backend
    for seed, grids in ((1, GRIDS), (2, GRIDS), (3, [(2, 4, 2), (1, 1, 1), (3, 2, 2)])):
        tokens, level, layout = inputs(seed, grids)
        got = model(tokens, level, context, layout, TEXT_LAYOUT)
        torch.testing.assert_close(got, model(tokens, level, TEXT, layout, TEXT_LAYOUT), rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_text_is_read_in_the_first_pass_alone():
    model, context, calls = make(), TextContext(TEXT), []
    for module in (model.text_in, model.pooled_in, *(block.cross.key_value for block in model.blocks)):
        module.register_forward_hook(lambda *_: calls.append(1))
    tokens, level, layout = inputs(1)
    for _ in range(3):
        model(tokens, level, context, layout, TEXT_LAYOUT)
    assert len(calls) == 2 + len(model.blocks)


@torch.no_grad()
@pytest.mark.parametrize("autocast", [True, False])
def test_in_bf16_too(autocast):
    model, context = make(), TextContext(TEXT if autocast else TEXT.bfloat16())
    model = model if autocast else model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for seed in (1, 2):
            tokens, level, layout = inputs(seed)
            tokens = tokens if autocast else tokens.bfloat16()
            got = model(tokens, level, context, layout, TEXT_LAYOUT)
            torch.testing.assert_close(got, model(tokens, level, context.states, layout, TEXT_LAYOUT))


def test_gradients_reach_the_tokens_pass_after_pass_and_not_what_is_kept():
    """As guidance by a measurement takes them, in passes with gradients over a model whose parameters want some."""
    model, context = make(), TextContext(TEXT)
    for seed in (1, 2):
        tokens, level, layout = inputs(seed)
        tokens.requires_grad_(True)
        found = [
            torch.autograd.grad(model(tokens, level, text, layout, TEXT_LAYOUT).square().sum(), tokens)[0]
            for text in (context, TEXT)
        ]
        torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
    assert not any(
        x.requires_grad
        for block in context.blocks
        for x in (block.states, *(x for pair in block.made.values() for x in pair))
    )


@torch.no_grad()
def test_compiled_blocks_read_it_without_recompiling():
    model, plain, context = make(), make(), TextContext(TEXT)
    torch._dynamo.reset()
    compile_blocks(model, backend="eager")
    for seed in (1, 2, 3):
        tokens, level, layout = inputs(seed)
        with torch._dynamo.config.patch(error_on_recompile=seed == 3):
            got = model(tokens, level, context, layout, TEXT_LAYOUT)
        torch.testing.assert_close(got, plain(tokens, level, TEXT, layout, TEXT_LAYOUT), rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_a_context_of_another_model_or_of_other_prompts_is_refused():
    context = TextContext(TEXT)
    tokens, level, layout = inputs(1)
    make()(tokens, level, context, layout, TEXT_LAYOUT)
    with pytest.raises(ValueError, match="2 blocks for a model of 3"):
        make(depth=3)(tokens, level, context, layout, TEXT_LAYOUT)
    with pytest.raises(ValueError, match="keys do not fit"):
        make()(tokens, level, context, layout, Packed.of_lengths([4, 1, 16]))
