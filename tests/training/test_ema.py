"""The average itself, swapping it in and out, and saving it in pieces."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from latentvid.training.ema import EMA
from latentvid.training.parallel.pieces import Piece, PieceReader


class Model:
    """A tiny model as a strategy shows it; `cut` halves every parameter, as a sharding strategy does."""

    def __init__(self, part: int | None = None) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
        self.net[1].requires_grad_(False)
        self.part, self.pushed = part, 0

    def pieces(self) -> list[Piece]:
        found = []
        for name, p in self.net.named_parameters():
            flat = p.detach().view(-1)
            half = flat.numel() // 2
            start = 0 if not self.part else half
            value = p.detach() if self.part is None else flat[:half] if self.part == 0 else flat[half:]
            found.append(Piece(name, tuple(p.shape), start, value, p.requires_grad))
        return found

    def push(self) -> None:
        self.pushed += 1

    def disturb(self) -> None:
        with torch.no_grad():
            for p in self.net.parameters():
                p.add_(torch.randn(p.shape))


def test_updates_follow_the_formula_with_warmup():
    model = Model()
    ema, want = EMA(model.pieces(), decay=0.3), model.net[0].weight.detach().clone()
    for n in range(6):
        model.disturb()
        ema.update(model.pieces())
        decay = min(0.3, (1 + n) / (10 + n))
        want = decay * want + (1 - decay) * model.net[0].weight.detach()
    torch.testing.assert_close(ema.shadow["0.weight"], want)
    assert list(ema.shadow) == ["0.weight", "0.bias", "2.weight", "2.bias"]


class Calls(TorchDispatchMode):
    """Names of the operators that were called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


def test_all_parameters_are_updated_by_one_call():
    """Which is a kernel for many tensors on a GPU, where a loop would be one for each."""
    model = Model()
    ema = EMA(model.pieces())
    with Calls() as calls:
        ema.update(model.pieces())
    assert [name for name in calls.names if "lerp" in name or "mul" in name or "add" in name] == ["_foreach_lerp_"]


def test_swapped_restores_the_raw_weights_bit_for_bit():
    model = Model()
    ema = EMA(model.pieces())
    model.disturb()
    ema.update(model.pieces())
    raw = {k: v.clone() for k, v in model.net.state_dict().items()}
    with pytest.raises(RuntimeError, match="inside"), ema.swapped(model):
        assert torch.equal(model.net[0].weight, ema.shadow["0.weight"]) and model.pushed == 1
        assert not torch.equal(model.net[0].weight, raw["0.weight"])
        raise RuntimeError("inside")
    assert all(torch.equal(v, raw[k]) for k, v in model.net.state_dict().items())
    assert model.net[0].weight.requires_grad and model.pushed == 2


def test_an_average_saved_in_halves_goes_on_whole_and_back(tmp_path):
    """Two processes save, one goes on; it saves, two go on: all equal the one that was never saved."""
    models = [Model(None), Model(0), Model(1)]
    averages = [EMA(model.pieces()) for model in models]

    def steps(n):
        torch.manual_seed(n)
        noise = [torch.randn(p.shape) for p in models[0].net.parameters()]
        for model, ema in zip(models, averages, strict=True):
            with torch.no_grad():
                for p, d in zip(model.net.parameters(), noise, strict=True):
                    p.add_(d)
            ema.update(model.pieces())

    steps(1)
    steps(2)
    for part in (0, 1):
        save_file(averages[1 + part].tensors(models[1 + part].pieces()), tmp_path / f"ema-{part}.safetensors")
    whole = EMA(Model().pieces())
    whole.load(models[0].pieces(), PieceReader(tmp_path, "ema"), averages[1].updates)
    averages[0] = whole
    steps(3)
    (tmp_path / "one").mkdir()
    save_file(averages[0].tensors(models[0].pieces()), tmp_path / "one" / "ema.safetensors")
    for model, ema in zip(models[1:], averages[1:], strict=True):
        before = {k: v.clone() for k, v in ema.shadow.items()}
        ema.load(model.pieces(), PieceReader(tmp_path / "one", "ema"), 3)
        assert all(torch.equal(before[k], v) for k, v in ema.shadow.items())


def test_another_model_is_refused_by_name():
    ema = EMA(Model().pieces())
    other = [Piece(n, tuple(p.shape), 0, p.detach()) for n, p in nn.Linear(3, 4).named_parameters()]
    with pytest.raises(ValueError, match=r"the model does not fit this EMA at .*(weight|bias)"):
        ema.update(other)
    with pytest.raises(ValueError, match="decay=1.5"):
        EMA(Model().pieces(), decay=1.5)
