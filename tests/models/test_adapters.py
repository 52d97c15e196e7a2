"""Linear layers are called: what wraps them, such as peft's LoRA, changes what the model computes and is trained."""

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as LoraLinear
from test_attention_layouts import make
from test_transformer import assert_close, forward, samples
from torch import nn

from latentvid import kernels
from latentvid.models.transformer import VideoDiT


def adapted() -> tuple[VideoDiT, dict[str, LoraLinear]]:
    """A model with LoRA around every linear layer, which changes nothing yet."""
    model = make("full")
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    model = inject_adapter_in_model(LoraConfig(r=2, lora_alpha=2, target_modules=names), model)
    found = {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}
    assert sorted(found) == sorted(names) and len(names) == 9 + 2 * 10
    return model, found


@pytest.mark.parametrize("plain", [False, True], ids=["kernels", "formulas"])
def test_lora_in_every_linear_layer_changes_the_output_and_is_trained(plain, monkeypatch):
    monkeypatch.setattr(kernels, "plain", plain)
    model, layers = adapted()
    before = forward(model, samples()).detach()
    assert_close(before, forward(make("full"), samples()))
    for name, layer in layers.items():
        b = layer.lora_B["default"].weight
        with torch.no_grad():
            b.normal_(std=0.3)
        out = forward(model, samples())
        assert (out - before).abs().max() > 1e-4, name
        a = layer.lora_A["default"].weight
        found = torch.autograd.grad(out.square().sum(), [a, b])
        assert all(g.abs().max() > 1e-6 for g in found), name
        with torch.no_grad():
            b.zero_()


@pytest.mark.parametrize("recomputing", [False, True])
def test_gradients_of_adapters_are_those_of_the_formulas(recomputing, monkeypatch):
    model, layers = adapted()
    model.gradient_checkpointing = recomputing
    weights = [p for layer in layers.values() for p in (*layer.lora_A.parameters(), *layer.lora_B.parameters())]
    with torch.no_grad():
        for p in weights:
            p.normal_(std=0.3)
    found = []
    for plain in (False, True):
        monkeypatch.setattr(kernels, "plain", plain)
        found.append(torch.autograd.grad(forward(model, samples()).square().mean(), weights))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * want.abs().max().item() + 1e-8)
