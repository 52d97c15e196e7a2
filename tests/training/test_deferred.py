"""A model built without storage and filled later is the one that is built at once, bit for bit."""

import pytest
import torch
from torch import nn

from latentvid.models.transformer import VideoDiT
from latentvid.training.parallel.deferred import fill, without_storage

ALL = {"fps_condition": True, "guidance_condition": True, "motion_condition": True}


@pytest.mark.parametrize("more", [{}, ALL | {"condition_channels": "mask_and_latents", "attention": "factorised"}])
def test_it_is_the_model_that_is_built_at_once(more):
    def make() -> VideoDiT:
        return VideoDiT(width=48, depth=2, heads=2, **more)

    torch.manual_seed(7)
    want = dict(make().named_parameters())
    before = torch.get_rng_state()
    model, how = without_storage(make, 7)
    assert all(p.is_meta for p in model.parameters())
    model.to_empty(device="cpu")
    for p in model.parameters():
        p.data.fill_(float("nan"))
    fill(model, how)
    found = dict(model.named_parameters())
    assert found.keys() == want.keys() and all(torch.equal(found[k], want[k]) for k in want)
    assert any(not torch.equal(p, torch.zeros_like(p)) for p in found.values())
    assert torch.equal(torch.get_rng_state(), before)  # which is nobody's to change


class Drawn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Parameter(torch.ones(5))
        nn.init.normal_(self.a.weight, std=0.5)
        nn.init.constant_(self.a.bias, 0.25)


def test_normal_draws_and_constants():
    torch.manual_seed(3)
    want = Drawn().state_dict()
    model, how = without_storage(Drawn, 3)
    model.to_empty(device="cpu")
    fill(model, how)
    assert all(torch.equal(value, want[key]) for key, value in model.state_dict().items())


class Half(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(4, 4))
        if way == "part":
            with torch.no_grad():
                self.a[:2].uniform_()
        elif way == "product":
            self.a.data.mul_(2)
        elif way == "buffer":
            self.register_buffer("b", torch.zeros(2))
            nn.init.zeros_(self.a)
        elif way == "shared":
            nn.init.zeros_(self.a)
            self.b = self.a


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("part", "slice|of a part of a tensor"),
        ("product", "mul_"),
        ("buffer", "has buffers"),
        ("none", "a is never"),
        ("shared", "in two places"),
    ],
)
def test_a_constructor_that_does_more_is_refused(way, message):
    with pytest.raises(NotImplementedError, match=message):
        without_storage(lambda: Half(way), 0)
