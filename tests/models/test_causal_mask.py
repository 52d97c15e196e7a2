"""Causal attention by FlexAttention's masks: which blocks, which tokens in them, and the same numbers."""

import copy

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from latentvid import attention
from latentvid.errors import UserError
from latentvid.models import transformer
from latentvid.models.causal_mask import causal_mask
from latentvid.models.compiling import compile_blocks
from latentvid.models.transformer import VideoDiT
from latentvid.packing import Packed

PACKS = [
    [(1, 2, 2)],
    [(2, 8, 8)],  # a block, frame by frame
    [(3, 8, 16), (1, 4, 4), (2, 16, 16)],  # frames of whole blocks, then what begins inside a block
    [(5, 5, 7), (1, 1, 3), (4, 20, 20), (1, 11, 12)],
    [(2, 1, 1)] * 150,  # many samples a block
]


def dense(layout: Packed) -> torch.Tensor:
    """bool [T,T], token by token."""
    same = layout.segment[:, None] == layout.segment
    return same & (layout.frame[:, None] >= layout.frame)


@pytest.mark.parametrize("grids", PACKS)
def test_blocks_are_those_that_torch_would_find(grids):
    layout = Packed.of(grids)
    found, seen = causal_mask(layout), dense(layout)
    exact = create_block_mask(found.mask_mod, None, None, layout.tokens, layout.tokens, device="cpu")
    for one in ("kv", "full_kv", "q", "full_q"):
        counts, wanted = (getattr(mask, f"{one}_num_blocks") for mask in (found, exact))
        assert torch.equal(counts, wanted), one
        places, right = (getattr(mask, f"{one}_indices") for mask in (found, exact))
        for row, (n, here, there) in enumerate(zip(counts[0, 0], places[0, 0], right[0, 0], strict=True)):
            assert here[:n].tolist() == there[:n].tolist(), (one, row)
    numbers = torch.arange(layout.tokens)
    assert torch.equal(found.mask_mod(0, 0, numbers[:, None], numbers), seen)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("grids", PACKS[2:4])
def test_a_causal_model_computes_what_copied_keys_give(monkeypatch, grids):
    """Forward: FlexAttention has no backward pass on CPUs."""
    monkeypatch.setattr(attention, "_compiled_flex", lambda: flex_attention)
    torch.manual_seed(0)
    model = VideoDiT(latent_channels=4, width=32, depth=2, heads=2, text_width=24, attention="causal")
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    layout, words = Packed.of(grids), Packed.of_lengths([5] * len(grids))
    given = torch.randn(layout.tokens, 16), torch.rand(layout.frames), torch.randn(words.tokens, 24)
    outs = []
    for backend in ("sdpa", "flex"):
        monkeypatch.setattr(transformer, "resolve_backend", lambda *_, b=backend: b)
        with torch.no_grad():
            outs.append(model(*given, layout, words))
    torch.testing.assert_close(outs[1], outs[0], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_compiled_block_takes_the_masks_of_any_packs(monkeypatch):
    """One graph, of one block with two packs, without gradients."""
    torch._dynamo.reset()
    model = VideoDiT(latent_channels=4, width=32, depth=1, heads=2, text_width=24, attention="causal")
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    other = copy.deepcopy(model)
    compile_blocks(other, backend="aot_eager")
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for grids in ([(3, 8, 16), (1, 4, 4), (2, 16, 16)], [(5, 5, 7), (2, 12, 12)]):
            layout, words = Packed.of(grids), Packed.of_lengths([5 + i for i in range(len(grids))])
            given = torch.randn(layout.tokens, 16), torch.rand(layout.frames), torch.randn(words.tokens, 24)
            outs = []
            for net, backend in ((model, "sdpa"), (other, "flex")):
                monkeypatch.setattr(transformer, "resolve_backend", lambda *_, b=backend: b)
                outs.append(net(*given, layout, words))
            torch.testing.assert_close(*outs, rtol=1e-4, atol=1e-4)


def test_flex_is_of_gpus():
    with pytest.raises(UserError, match="'flex' needs CUDA, got cpu"):
        attention.resolve_backend("flex", "cpu", torch.float32)
    assert attention.resolve_backend("flex", "cuda", torch.bfloat16) == "flex"


@pytest.mark.gpu
def test_flex_on_a_gpu_has_the_reference_s_gradients():
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = VideoDiT(latent_channels=4, width=64, depth=2, heads=2, text_width=24, attention="causal")
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    layout, words = Packed.of(PACKS[2]).to("cuda"), Packed.of_lengths([5] * 3).to("cuda")
    given = (torch.randn(layout.tokens, 16), torch.rand(layout.frames), torch.randn(words.tokens, 24))
    grads = []
    for backend in ("sdpa", "flex"):
        model.attention_backend = backend
        model.zero_grad()
        model(*(x.cuda() for x in given), layout, words).square().mean().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for exact, found in zip(*grads, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-2, atol=1e-4)
