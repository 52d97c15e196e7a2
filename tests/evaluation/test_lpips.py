"""LPIPS against the published formula written out, with random weights; loading, and what is refused."""

import pytest
import torch
import torch.nn.functional as nnf
from random_networks import lpips_weights
from safetensors.torch import save_file

from latentvid.errors import UserError
from latentvid.evaluation.pairs.lpips import SMALLEST, load_lpips


def features(net: str, w: dict, x: torch.Tensor) -> list[torch.Tensor]:
    """Outputs of the five levels, written out."""
    x = (x - torch.tensor([-0.030, -0.088, -0.188])[:, None, None]) / torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    conv = lambda k, x, **more: nnf.relu(nnf.conv2d(x, w[f"conv{k}.weight"], w[f"conv{k}.bias"], **more))  # noqa: E731
    if net == "alex":
        first = conv(0, x, stride=4, padding=2)
        second = conv(1, nnf.max_pool2d(first, 3, 2), padding=2)
        third = conv(2, nnf.max_pool2d(second, 3, 2), padding=1)
        fourth = conv(3, third, padding=1)
        return [first, second, third, fourth, conv(4, fourth, padding=1)]
    levels, k = [], 0
    for count in (2, 2, 3, 3, 3):
        x = nnf.max_pool2d(x, 2) if levels else x
        for _ in range(count):
            x, k = conv(k, x, padding=1), k + 1
        levels.append(x)
    return levels


def formula(net: str, w: dict, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Sum over levels of the mean over positions of w . (a/|a| - b/|b|)^2"""
    total = 0
    for j, (x, y) in enumerate(zip(features(net, w, a), features(net, w, b), strict=True)):
        x, y = (z / z.norm(dim=1, keepdim=True) for z in (x, y))
        total = total + ((x - y) ** 2 * w[f"lin{j}.weight"]).sum(1).mean(dim=(1, 2))
    return total


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_it_is_the_published_formula_and_differentiable(net, tmp_path):
    w = lpips_weights(net)
    save_file(w, tmp_path / f"{net}.safetensors")
    state = torch.get_rng_state()
    network = load_lpips(tmp_path, net)
    assert torch.equal(state, torch.get_rng_state())  # loading draws nothing
    a, b = torch.rand(2, 3, 40, 48) * 2 - 1, torch.rand(2, 3, 40, 48) * 2 - 1
    found = network(a.requires_grad_(), b)
    torch.testing.assert_close(found, formula(net, w, a, b), rtol=1e-4, atol=1e-5)
    found.sum().backward()
    assert torch.isfinite(a.grad).all() and a.grad.abs().max() > 0
    assert not any(p.requires_grad for p in network.parameters()) and not network.train().training
    assert network(b, b).tolist() == [0, 0] and network(a[:1], b[:1]).shape == (1,)
    with pytest.raises(UserError, match=f"at least {SMALLEST[net]}"):
        network(a[..., :8, :8], b[..., :8, :8])
    network(a[..., : SMALLEST[net], : SMALLEST[net]], b[..., : SMALLEST[net], : SMALLEST[net]])


def test_without_a_path_torchvisions_cache_serves_and_nothing_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=r"alexnet-owt-7be5be79\.pth"):
        load_lpips(None, "alex")
    w = lpips_weights("alex")
    places = (0, 3, 6, 8, 10)  # of the convolutions in torchvision's network
    saved = {f"features.{i}.{kind}": w[f"conv{k}.{kind}"] for k, i in enumerate(places) for kind in ("weight", "bias")}
    (tmp_path / "checkpoints").mkdir()
    torch.save(saved | {"classifier.1.weight": torch.ones(1)}, tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth")
    state = load_lpips(None, "alex").network.state_dict()
    assert torch.equal(state["net.slice5.10.weight"], w["conv4.weight"])
    assert state["lin4.model.1.weight"].min() >= 0  # torchmetrics' own heads


def test_wrong_weights_are_refused(tmp_path):
    w = lpips_weights("alex")
    save_file({name: value for name, value in w.items() if name != "lin3.weight"}, tmp_path / "some.safetensors")
    save_file(w, tmp_path / "vgg.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"none")
    for path, net, message in (
        ("none", "alex", "no LPIPS weights at"),
        ("", "alex", r"alex\.safetensors"),
        ("", "vgg", "does not hold the weights of LPIPS vgg"),
        ("some.safetensors", "alex", "lin3"),
        ("bad.safetensors", "alex", "does not hold"),
        ("", "squeeze", "one of alex, vgg"),
    ):
        with pytest.raises(UserError, match=message):
            load_lpips(tmp_path / path, net)
