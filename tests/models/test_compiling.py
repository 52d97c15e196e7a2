"""Compiled blocks through a whole run: few graphs, whatever passes come, and nothing that stops in the middle."""

import copy
import pickle

import pytest
import torch
import torch.nn.attention.varlen as varlen
from open_instances import INSTANCES
from open_models import run_packed, together
from test_attention_layouts import make
from test_transformer import assert_close
from test_without_a_gpu import attend, attend_back

from latentvid.models import transformer
from latentvid.models.compiling import GRAPHS, compile_blocks
from latentvid.models.key_value_cache import KeyValueCache
from latentvid.models.open import OpenBackbone, packed
from latentvid.models.text_context import TextContext
from latentvid.models.transformer import VideoDiT
from latentvid.packing import Packed

PACKS = [  # token grids, and words of each prompt
    ([(3, 2, 4), (1, 3, 2)], [5, 2]),
    ([(1, 2, 2)], [3]),  # one frame of one image
    ([(1, 1, 1)], [1]),
    ([(2, 2, 2)] * 4, [4] * 4),  # sizes that are equal by chance: 8 frames of 8 tokens
    ([(2, 16, 9), (1, 2, 2)], [130, 1]),  # more than 128 tokens, from where torch 2.15 would take another kernel
    ([(4, 2, 2), (2, 3, 1), (1, 2, 1)], [1, 1, 1]),
]


class Counted:
    """A backend of torch.compile that counts what it compiles."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


def passes(model: VideoDiT, packs=PACKS) -> list[torch.Tensor]:
    """Outputs of training, of validation, and of sampling over packs of all kinds; gradients are left in the model."""
    rand, outs = torch.Generator().manual_seed(0), []
    for grids, words in packs:
        layout, text_layout = Packed.of(grids), Packed.of_lengths(words)
        tokens = torch.randn(layout.tokens, 12, generator=rand)
        level, text = torch.rand(layout.frames, generator=rand), torch.randn(text_layout.tokens, 10, generator=rand)
        fps = 12.0 * torch.arange(len(grids))  # the first is not known
        outs.append(model(tokens, level, text, layout, text_layout, fps=fps))
        outs[-1].square().mean().backward()
        with torch.no_grad():
            outs.append(model(tokens, level, text, layout, text_layout, fps=fps))
            context = TextContext(text)
            outs += [model(tokens, factor * level, context, layout, text_layout, fps=fps) for factor in (1.0, 0.5)]
            if model.config.attention == "causal":
                cache = KeyValueCache()
                with cache.recording():
                    outs.append(model(tokens, 0 * level, context, layout, text_layout, cache=cache, fps=fps))
                outs.append(model(tokens, level, context, layout, text_layout, cache=cache, fps=fps))
    return outs


@pytest.fixture
def stand_in():
    """torch's kernel for packs on CPUs; which kernel is taken is chosen as ever."""
    varlen._varlen_attn.register_kernel("cpu", attend)
    varlen._varlen_attn_backward.register_kernel("cpu", attend_back)


@pytest.mark.parametrize(
    ("attention", "most", "backend"),
    [
        ("full", 12, "grouped"),
        pytest.param("full", 12, "torch", marks=pytest.mark.slow),  # test_without_a_gpu.py compiles it too
        *(
            pytest.param(*kind, backend, marks=pytest.mark.slow)
            for kind in (("factorised", 24), ("causal", 20))
            for backend in ("torch", "grouped")
        ),
    ],
)
def test_a_run_makes_few_graphs_and_computes_what_eager_blocks_do(attention, most, backend, stand_in, monkeypatch):
    monkeypatch.setattr(transformer, "resolve_backend", lambda *_: backend)
    model = make(attention, depth=2, fps_condition=True, rope_fps=24.0)
    other = copy.deepcopy(model)
    torch._dynamo.reset()
    count = Counted()
    compile_blocks(other, backend=count)
    graphs = []
    for _ in range(2):  # the second time nothing is new
        for got, want in zip(passes(other), passes(model), strict=True):
            assert_close(got, want)
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-5)
        graphs.append(count.graphs)
    assert graphs[0] == graphs[1] <= most < GRAPHS


def test_a_copy_of_a_compiled_model_computes_with_its_own_weights():
    model = make("full")
    torch._dynamo.reset()
    compile_blocks(model, backend="eager")
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.5)
    plain = make("full")
    plain.load_state_dict(other.state_dict())
    got, want, kept = (passes(net, PACKS[:1])[0] for net in (other, plain, model))
    assert_close(got, want)
    assert not torch.allclose(kept, got, atol=1e-3)


# --- published models, whose blocks have packed passes of ours ---

CHOSEN = [[0, 1, 2, 3], [1], [3, 0, 3]]  # which samples of an instance make a pack
BY_DEFAULT = ("cogvideox",)  # the others are slow tests


def open_passes(model: OpenBackbone, made, packs=CHOSEN) -> list[torch.Tensor]:
    """As `passes`, of training with recomputed blocks and of sampling."""
    outs = []
    model.enable_gradient_checkpointing()
    for chosen in packs:
        part = [made[i] for i in chosen]
        outs.append(torch.cat(run_packed(model, part, model.patch, together(part, model.patch))))
        outs[-1].square().mean().backward()
        with torch.no_grad():
            outs.append(torch.cat(run_packed(model, part, model.patch, together(part, model.patch))))
    return outs


@pytest.mark.parametrize("name", [n if n in BY_DEFAULT else pytest.param(n, marks=pytest.mark.slow) for n in INSTANCES])
def test_blocks_of_published_models_make_few_graphs_and_compute_what_eager_ones_do(name):
    raw, made = INSTANCES[name]()
    model = packed(raw)
    other = copy.deepcopy(model)
    torch._dynamo.reset()
    count = Counted()
    compile_blocks(other, backend=count)
    graphs = []
    for _ in range(2):
        for got, want in zip(open_passes(other, made), open_passes(model, made), strict=True):
            assert_close(got, want)
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-5)
        graphs.append(count.graphs)
    kinds = len({(type(block), getattr(block, "context_pre_only", None)) for block in model.blocks})  # Mochi's last one
    assert 0 < graphs[0] == graphs[1] <= 8 * kinds < GRAPHS


@pytest.mark.slow
def test_copies_and_pickles_of_published_models_compute_with_their_own_weights():
    raw, made = INSTANCES["wan"]()
    model = packed(raw)
    torch._dynamo.reset()
    compile_blocks(model, backend="eager")
    kept = open_passes(model, made, CHOSEN[:1])[0]
    assert all(block.forward.compiled for block in copy.deepcopy(model).blocks)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_close(open_passes(other, made, CHOSEN[:1])[0], kept)
        with torch.no_grad():
            for p in other.parameters():
                p.mul_(1.5)
        raw, _ = INSTANCES["wan"]()
        plain = packed(raw)
        plain.load_state_dict(other.state_dict())
        got, want = (open_passes(net, made, CHOSEN[:1])[0] for net in (other, plain))
        assert_close(got, want)
        assert not torch.allclose(got, kept, atol=1e-3)
    assert_close(open_passes(model, made, CHOSEN[:1])[0], kept)
