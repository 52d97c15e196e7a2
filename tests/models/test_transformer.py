"""Packed equals alone, AdaLN-Zero, noise levels per row, checkpointing, compilation and saving of VideoDiT."""

import copy
import shutil

import pytest
import torch
from torch import Tensor

from latentvid.models.compiling import compile_blocks
from latentvid.models.layers import apply_rotary, rotary_table
from latentvid.models.transformer import VideoDiT
from latentvid.packing import Packed

SMALL = dict(latent_channels=3, patch=2, width=24, depth=2, heads=2, text_width=10)
GRIDS = [(3, 2, 2), (1, 3, 2), (2, 1, 4), (3, 2, 2)]
WORDS = [4, 1, 3, 2]


def disturbed(module: torch.nn.Module) -> torch.nn.Module:
    """The module with noise on every parameter: at initialisation most of it is switched off."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return module


@pytest.fixture
def model() -> VideoDiT:
    return disturbed(VideoDiT(**SMALL))


def samples(grids=GRIDS, words=WORDS) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(tokens, noise levels, text) of each sample."""
    rand = torch.Generator().manual_seed(2)
    return [
        (
            torch.randn(f * h * w, 12, generator=rand),
            torch.rand(f, generator=rand),
            torch.randn(n, 10, generator=rand),
        )
        for (f, h, w), n in zip(grids, words, strict=True)
    ]


def forward(model: VideoDiT, samples, grids=GRIDS, words=WORDS) -> Tensor:
    tokens, timestep, text = (torch.cat(part) for part in zip(*samples, strict=True))
    return model(tokens, timestep, text, Packed.of(grids), Packed.of_lengths(words))


def gradients(model: VideoDiT, outputs: list[Tensor]) -> list[Tensor]:
    """Of a loss that weighs every element of each sample's output differently."""
    loss = sum((y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum() for y in outputs)
    return torch.autograd.grad(loss, list(model.parameters()))


def assert_close(got, want) -> None:
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_packed_equals_each_sample_alone(model):
    lengths = Packed.of(GRIDS).lengths
    packed = forward(model, samples()).split(lengths)
    alone = [forward(model, [s], [g], [n]) for s, g, n in zip(samples(), GRIDS, WORDS, strict=True)]
    assert_close(packed, tuple(alone))
    got, want = gradients(model, packed), gradients(model, alone)
    assert all(g.any() for g in got)
    scale = max(g.abs().max() for g in want)
    assert_close([g / scale for g in got], [g / scale for g in want])


def test_permuting_samples_permutes_outputs(model):
    order = [2, 0, 3, 1]
    parts = forward(model, samples()).split(Packed.of(GRIDS).lengths)
    grids, words = [GRIDS[i] for i in order], [WORDS[i] for i in order]
    permuted = forward(model, [samples()[i] for i in order], grids, words)
    assert_close(permuted.split(Packed.of(grids).lengths), tuple(parts[i] for i in order))


@pytest.mark.parametrize("part", ["tokens", "timestep", "text"])
def test_a_sample_sees_only_its_own_inputs(model, part):
    changed = samples()
    which = ["tokens", "timestep", "text"].index(part)
    first = changed[1][which][:1]  # the second sample's first token, row or word
    first.copy_(torch.rand_like(first))
    before, after = (forward(model, s).split(Packed.of(GRIDS).lengths) for s in (samples(), changed))
    assert not torch.allclose(after[1], before[1], atol=1e-4)
    for i in (0, 2, 3):
        assert torch.equal(after[i], before[i])


def test_a_rows_timestep_modulates_its_own_tokens():
    """Without blocks nothing carries a noise level from one latent frame to another."""
    model = disturbed(VideoDiT(**SMALL | {"depth": 0}))
    changed = samples()
    changed[0][1][1] += 0.3  # the first sample's second latent frame, of 4 tokens
    moved = (forward(model, changed) - forward(model, samples())).abs().amax(-1) > 1e-5
    assert moved.nonzero().flatten().tolist() == [4, 5, 6, 7]


def test_at_initialisation_the_output_is_zero_and_blocks_are_identities():
    model = VideoDiT(**SMALL)
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    assert not forward(model, samples()).any()
    assert len(seen) == 2 and seen[0][0].any()
    assert all(torch.equal(before, after) for before, after in seen)


def test_from_initialisation_a_step_moves_the_output():
    model = VideoDiT(**SMALL)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    target, losses = torch.randn(38, 12), []
    for _ in range(20):
        loss = (forward(model, samples()) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.97 * losses[0]
    assert all(p.grad.any() for p in model.parameters())


def test_activation_checkpointing_gives_the_same_gradients(model):
    want = gradients(model, [forward(model, samples())])
    model.enable_gradient_checkpointing()
    assert model.gradient_checkpointing
    calls = []
    model.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    got = gradients(model, [forward(model, samples())])
    assert len(calls) == 2  # computed again in the backward pass
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_rotary_scores_depend_on_relative_positions_along_every_axis():
    q, k = torch.randn(1, 2, 16), torch.randn(1, 2, 16)

    def score(at_q, at_k):
        a = apply_rotary(q, rotary_table(torch.tensor([at_q]), 16, 100.0))
        b = apply_rotary(k, rotary_table(torch.tensor([at_k]), 16, 100.0))
        return (a * b).sum(-1)

    base = score((0, 0, 0), (1, 2, 3))
    torch.testing.assert_close(score((4, 5, 6), (5, 7, 9)), base)
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert not torch.allclose(score((0, 0, 0), other), base, atol=1e-3)


# test_attention_layouts.py has the first two by default, without the kernels' compiler
@pytest.mark.parametrize(
    "attention", [*(pytest.param(kind, marks=pytest.mark.slow) for kind in ("full", "factorised")), "causal"]
)
def test_blocks_compile_whole_and_once_for_all_layouts(attention):
    # inductor needs a C++ compiler, and time: the other kinds differ in what is traced, not in the kernels
    backend = "inductor" if attention == "full" and shutil.which("g++") else "aot_eager"
    model = disturbed(VideoDiT(**SMALL | {"attention": attention}))
    other = copy.deepcopy(model)
    torch._dynamo.reset()
    compile_blocks(other, backend=backend)
    packs = ([(4, 2, 3), (3, 2, 2)], [4, 5]), ([(3, 2, 2)] * 3 + [(1, 1, 2)], [2, 5, 3, 4])
    for i, (grids, words) in enumerate(packs):
        with torch._dynamo.config.patch(error_on_recompile=i > 0):
            results = []
            for net in (model, other):
                y = forward(net, samples(grids, words), grids, words)
                results.append([y, *torch.autograd.grad(y.square().mean(), list(net.parameters()))])
        torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


def test_bf16_autocast_is_near_fp32(model):
    want = forward(model, samples())
    with torch.autocast("cpu", torch.bfloat16):
        got = forward(model, samples())
    assert (got.float() - want).norm() < 0.03 * want.norm()
    assert all(g.isfinite().all() and g.dtype == torch.float32 for g in gradients(model, [got.float()]))


def test_bf16_weights_run(model):
    rounded = [(x.bfloat16(), t, text.bfloat16()) for x, t, text in samples()]  # noise levels stay exact
    got = forward(copy.deepcopy(model).bfloat16(), rounded)
    assert got.dtype == torch.bfloat16
    want = forward(model, samples())
    assert (got.float() - want).norm() < 0.05 * want.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["torch", "grouped"])
def test_bf16_autocast_on_cuda_is_near_fp32_on_the_cpu(backend):
    model = disturbed(VideoDiT(**SMALL | {"width": 128}))
    want = forward(model, samples())
    model = model.cuda()
    model.attention_backend = backend
    tokens, timestep, text = (torch.cat(part).cuda() for part in zip(*samples(), strict=True))
    with torch.autocast("cuda", torch.bfloat16):
        got = model(tokens, timestep, text, Packed.of(GRIDS).to("cuda"), Packed.of_lengths(WORDS).to("cuda"))
    assert (got.float().cpu() - want).norm() < 0.05 * want.norm()


def test_saving_and_loading_give_the_same_model(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = VideoDiT.from_pretrained(tmp_path)
    assert not loaded.training and dict(loaded.config) | SMALL == dict(loaded.config)
    with torch.no_grad():
        assert torch.equal(forward(loaded, samples()), forward(model, samples()))


def test_arguments_that_do_not_fit_are_named(model):
    with pytest.raises(TypeError, match="widht"):
        VideoDiT(**SMALL, widht=24)
    for wrong in ({"heads": 5}, {"width": 14}, {"heads": 6}):  # not whole, odd, below 6
        with pytest.raises(ValueError, match=r"width \d+ / heads \d: the head width must be a whole even number"):
            VideoDiT(**SMALL | wrong)
    with pytest.raises(ValueError, match="attention 'divided': one of full, factorised, causal"):
        VideoDiT(**SMALL, attention="divided")
    with pytest.raises(ValueError, match="factorised attention takes .* depth 1 is below 2"):
        VideoDiT(**SMALL | {"depth": 1}, attention="factorised")
    with pytest.raises(ValueError, match="4 samples but 3 prompts: give one prompt a sample"):
        forward(model, samples(), words=[4, 4, 2])
    tokens, timestep, text = (torch.cat(part) for part in zip(*samples(), strict=True))
    with pytest.raises(ValueError, match=r"timestep has shape \(4,\), the layout has 9 frames"):
        model(tokens, timestep[:4], text, Packed.of(GRIDS), Packed.of_lengths(WORDS))
