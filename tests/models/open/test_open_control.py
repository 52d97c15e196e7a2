"""Control branches beside published models of all families: the base at first, packed equals alone, gradients."""

import pytest
import torch
from open_instances import INSTANCES
from open_models import gradients, grids_of, run_packed, together
from torch import Tensor

from latentvid.models.control import Control, ControlBranch
from latentvid.models.open import packed
from latentvid.packing import Packed, patch_size


@pytest.mark.parametrize("kind", list(INSTANCES))
def test_a_branch_beside_a_family(kind):
    raw, made = INSTANCES[kind]()
    model = packed(raw.requires_grad_(False))
    model.strides = 4, 8
    lengths, rand = Packed.of(grids_of(made, model.patch)).lengths, torch.Generator().manual_seed(5)
    features = model.latent_channels * patch_size(model.patch)
    signals = [torch.randn(n, features, generator=rand) for n in lengths]

    def run(samples, tokens: list[Tensor] | None) -> list[Tensor]:
        told = {} if tokens is None else {"control": Control.of(torch.cat(tokens))}
        call = lambda *a, **k: model(*a, **k, **told)  # noqa: E731
        return run_packed(call, samples, model.patch, together(samples, model.patch))

    branch = ControlBranch(model, 2)
    model.controls.append(branch)
    trained = {name for name, p in branch.named_parameters() if p.requires_grad}
    assert not any(model.idle(name) for name in trained)
    plain, first = run(made, None), run(made, signals)
    assert all(map(torch.equal, plain, first))
    with torch.no_grad():
        for name, p in branch.named_parameters():
            if name.startswith("controlnet_"):
                p.normal_(std=0.3, generator=rand)
    found = run(made, signals)
    for i, (one, own) in enumerate(zip(made, found, strict=True)):
        torch.testing.assert_close(run([one], [signals[i]])[0], own, rtol=1e-4, atol=1e-5)
        assert float((own - plain[i]).detach().abs().max()) > 1e-3
    grads = gradients(model, found)
    assert set(grads) == {f"controls.0.{name}" for name in trained}
    assert all(grads[f"controls.0.{name}"].any() for name in trained if name.startswith("controlnet_"))
