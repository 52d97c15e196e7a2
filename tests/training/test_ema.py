"""The average itself, swapping it in and out, and saving it."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from latentvid.training.ema import EMA


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).to(dtype)
    net[1].requires_grad_(False)
    return net


def disturb(net: nn.Module) -> None:
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape).to(p.dtype))


def test_updates_follow_the_formula_with_warmup():
    net = model()
    ema, want = EMA(net, decay=0.3), net[0].weight.detach().clone()
    for n in range(6):
        disturb(net)
        ema.update(net)
        decay = min(0.3, (1 + n) / (10 + n))
        want = decay * want + (1 - decay) * net[0].weight.detach()
    torch.testing.assert_close(ema.shadow["0.weight"], want)
    assert list(ema.shadow) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_bf16_models_are_averaged_in_fp32():
    net = model(torch.bfloat16)
    ema = EMA(net, decay=0.9999, warmup=False)
    start = ema.shadow["0.weight"].clone()
    with torch.no_grad():
        net[0].weight.add_(1)
    ema.update(net)
    moved = ema.shadow["0.weight"] - start
    assert ema.shadow["0.weight"].dtype == torch.float32 and 5e-5 < moved.mean() < 2e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swapped_restores_the_raw_weights_bit_for_bit(dtype):
    net = model(dtype)
    ema = EMA(net)
    disturb(net)
    ema.update(net)
    raw = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(RuntimeError, match="inside"), ema.swapped(net):
        assert torch.equal(net[0].weight, ema.shadow["0.weight"].to(dtype))
        assert not torch.equal(net[0].weight, raw["0.weight"])
        raise RuntimeError("inside")
    assert all(torch.equal(v, raw[k]) for k, v in net.state_dict().items())
    assert net[0].weight.requires_grad


def test_state_survives_a_safetensors_file_exactly(tmp_path):
    net = model()
    ema, other = EMA(net), EMA(net)
    for _ in range(3):
        disturb(net)
        ema.update(net)
    save_file(ema.state_dict(), tmp_path / "ema.safetensors")
    other.load_state_dict(load_file(tmp_path / "ema.safetensors"))
    disturb(net)
    ema.update(net)
    other.update(net)
    assert ema.updates == other.updates == 4
    assert all(torch.equal(other.shadow[k], v) for k, v in ema.shadow.items())


def test_another_model_is_refused_by_name():
    ema = EMA(model())
    with pytest.raises(ValueError, match=r"the model does not fit this EMA at .*(weight|bias)"):
        ema.update(nn.Linear(3, 4))
    with pytest.raises(ValueError, match=r"saved average .* at shadow.2.bias: missing"):
        ema.load_state_dict({k: v for k, v in ema.state_dict().items() if k != "shadow.2.bias"})
    with pytest.raises(ValueError, match="decay=1.5"):
        EMA(model(), decay=1.5)
