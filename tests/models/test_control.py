"""Control branches beside a model: nothing changes at first and at scale 0, packed equals alone, sums, files."""

import copy

import pytest
import torch
from torch import Tensor

from latentvid.errors import UserError
from latentvid.models.adapters.control_files import base_of, is_its_base, load_control, read_control, save_control
from latentvid.models.adapters.lora import load_lora
from latentvid.models.control import Control, ControlBranch, Reads
from latentvid.models.text_context import TextContext
from latentvid.models.transformer import VideoDiT
from latentvid.packing import Packed
from latentvid.references import Role

SMALL = dict(latent_channels=3, patch=2, width=24, depth=3, heads=2, text_width=10)
GRIDS = [(3, 2, 4), (1, 3, 2), (2, 1, 4)]
WORDS = [4, 1, 3]


def lively(module: torch.nn.Module, seed: int = 1) -> None:
    rand = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=rand))


def make(attention: str = "full") -> VideoDiT:
    torch.manual_seed(1)
    model = VideoDiT(**SMALL, attention=attention)
    lively(model)
    return model


def controlled(*seeds: int, every: int = 2, attention: str = "full") -> VideoDiT:
    """With a trained branch for each seed."""
    model = make(attention)
    for seed in seeds:
        branch = ControlBranch(model, every)
        lively(branch, seed)
        model.controls.append(branch)
    return model


def parts() -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """(tokens, noise levels, text, signal) of each sample."""
    rand, found = torch.Generator().manual_seed(2), []
    for (f, h, w), n in zip(GRIDS, WORDS, strict=True):
        tokens, signal = (torch.randn(f * h * w, 12, generator=rand) for _ in range(2))
        found.append((tokens, torch.rand(f, generator=rand), torch.randn(n, 10, generator=rand), signal))
    return found


def forward(model: VideoDiT, found=None, grids=GRIDS, control=None, context: bool = False) -> Tensor:
    """control: makes the pass's `Control` of the signal's tokens."""
    tokens, levels, text, signal = (torch.cat(part) for part in zip(*(found or parts()), strict=True))
    words = Packed.of_lengths([len(each[2]) for each in found or parts()])
    told = {} if control is None else {"control": control(signal)}
    return model(tokens, levels, TextContext(text) if context else text, Packed.of(grids), words, **told)


def by_hand(model: VideoDiT, signal: Tensor, scales: list[float]) -> list[Tensor]:
    """What each block of a copy of the model makes, written out: hooks instead of the branches' own pass."""
    plain = copy.deepcopy(model)
    branches, states = plain.controls, [None] * len(plain.controls)
    plain.controls = torch.nn.ModuleList()

    def after(number: int):
        def hook(block, arguments, made):
            for i, (branch, scale) in enumerate(zip(branches, scales, strict=True)):
                if number % branch.every == 0:
                    x, *rest = arguments
                    states[i] = x + branch.controlnet_x_embedder(signal) if number == 0 else states[i]
                    states[i] = branch.transformer_blocks[number // branch.every](states[i], *rest)
                    made = made + scale * branch.controlnet_blocks[number // branch.every](states[i])
            return made

        return hook

    for number, block in enumerate(plain.blocks):
        block.register_forward_hook(after(number))
    return forward(plain)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["full", "factorised", "causal"])
def test_at_first_and_at_scale_0_nothing_changes(attention):
    model, plain = make(attention), forward(make(attention))
    model.controls.append(ControlBranch(model, 2))
    assert torch.equal(forward(model, control=Control.of), plain)
    assert torch.equal(forward(controlled(5, attention=attention)), plain)
    off = forward(controlled(5, attention=attention), control=lambda s: Control((0,), (s,), (torch.zeros(len(GRIDS)),)))
    assert torch.equal(off, plain)
    assert not torch.allclose(forward(controlled(5, attention=attention), control=Control.of), plain)


@torch.no_grad()
@pytest.mark.parametrize("context", [False, True])
def test_several_are_the_sum_of_their_parts(context):
    model, signal = controlled(5, 6), torch.cat([each[3] for each in parts()])
    scales = [0.5, -1.25]
    both = lambda s: Control((0, 1), (s, s), tuple(torch.full((len(GRIDS),), scale) for scale in scales))  # noqa: E731
    found = forward(model, control=both, context=context)
    torch.testing.assert_close(found, by_hand(model, signal, scales), rtol=1e-5, atol=1e-6)
    second = forward(model, control=lambda s: Control((1,), (s,), (None,)), context=context)
    torch.testing.assert_close(second, by_hand(model, signal, [0.0, 1.0]), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_sample_in_a_pack_is_as_it_is_alone():
    model, plain = controlled(5), forward(make())
    scales = torch.tensor([1.0, 0.0, 0.5])
    together = forward(model, control=lambda s: Control((0,), (s,), (scales,)))
    lengths = Packed.of(GRIDS).lengths
    for i, (own, base) in enumerate(zip(together.split(lengths), plain.split(lengths), strict=True)):
        alone = forward(model, [parts()[i]], [GRIDS[i]], lambda s, i=i: Control((0,), (s,), (scales[i : i + 1],)))
        torch.testing.assert_close(own, alone, rtol=1e-5, atol=1e-5)
        assert torch.equal(own, base) == (scales[i] == 0)


def test_gradients_reach_the_branch_alone_and_all_of_it():
    model = make().requires_grad_(False)
    model.controls.append(ControlBranch(model, 2))
    forward(model, control=Control.of).square().mean().backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, _ in model.named_parameters() if name.startswith("controls.")}
    moved = {name for name, p in model.controls[0].named_parameters() if p.grad.any()}
    assert moved == {f"controlnet_blocks.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")}  # all else is next
    lively(model.controls[0], 3)
    found = []
    for checkpointing in (False, True):
        model.gradient_checkpointing = checkpointing
        model.zero_grad()
        forward(model, control=Control.of).square().mean().backward()
        found.append([p.grad.clone() for p in model.controls.parameters()])
        assert all(grad.any() for grad in found[-1])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# --- files -----------------------------------------------------------------------------------------------------------

ROLE = Role(place="control", signal="canny")


@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(tmp_path):
    model = controlled(5)
    save_control(model, tmp_path / "net", "edges", ROLE, base_of(make(), "there"))
    other = make()
    branch = load_control(other, tmp_path / "net", 0.5, 0.25, 0.75)
    assert branch.reads == Reads("edges", 0.5, 0.25, 0.75) and branch.every == 2
    assert torch.equal(forward(other, control=Control.of), forward(model, control=Control.of))
    found = read_control(tmp_path / "net")
    assert (found.role, found.reference, found.base["where"]) == ("edges", ROLE, "there")
    assert is_its_base(other, found) and not any(p.requires_grad for p in branch.parameters())
    other.blocks[0].mlp.fc2.bias.add_(1.0)
    assert not is_its_base(other, found)


def test_what_does_not_fit_is_refused(tmp_path, tmp_path_factory):
    save_control(controlled(5), tmp_path / "net", "edges", ROLE, base_of(make(), "there"))
    narrow = VideoDiT(**SMALL | {"width": 12})
    with pytest.raises(UserError, match="of another model .width 24, not 12"):
        load_control(narrow, tmp_path / "net")
    with pytest.raises(UserError, match="holds no ControlNet"):
        load_control(make(), tmp_path)
    make().save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="holds a 'VideoDiT', not a ControlBranch"):
        read_control(tmp_path / "model")
    with pytest.raises(UserError, match="save it without them"):
        controlled(5).save_pretrained(tmp_path / "other")
    config = tmp_path / "net/config.json"
    config.write_text(config.read_text().replace('"every": 2', '"every": 0'))
    with pytest.raises(UserError, match="every=0: must be a whole number from 1"):
        read_control(tmp_path / "net")
    with pytest.raises(ValueError, match="a signal of 3 tokens"):
        forward(controlled(5), control=lambda s: Control.of(s[:3]))


def test_it_goes_in_before_adapters(tmp_path):
    from peft import LoraConfig, inject_adapter_in_model

    from latentvid.models.adapters.lora import save_lora

    model = make()
    save_control(controlled(5), tmp_path / "net", "edges", ROLE, base_of(make(), "there"))
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["blocks.0.mlp.fc2"]), model)
    save_lora(model, tmp_path)
    after = make()
    load_control(after, tmp_path / "net")
    load_lora(after, tmp_path)
    before = make()
    load_lora(before, tmp_path)
    with pytest.raises(UserError, match="put control branches in before them"):
        load_control(before, tmp_path / "net")
