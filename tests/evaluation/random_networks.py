"""Random weights for the networks that scores are made with, named as the files name them."""

import torch

ALEX = [(64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3)]
VGG_WIDTHS = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
VGG = [(out, into, 3) for into, out in zip([3, *VGG_WIDTHS], VGG_WIDTHS, strict=False)]


def lpips_weights(net: str) -> dict[str, torch.Tensor]:
    """Of the real widths."""
    convolutions = ALEX if net == "alex" else VGG
    found = {}
    for k, (out, into, side) in enumerate(convolutions):
        found[f"conv{k}.weight"] = torch.randn(out, into, side, side) * (2 / (into * side * side)) ** 0.5
        found[f"conv{k}.bias"] = torch.randn(out) * 0.1
    heads = [out for out, _, _ in ALEX] if net == "alex" else [64, 128, 256, 512, 512]
    return found | {f"lin{j}.weight": torch.rand(1, width, 1, 1) for j, width in enumerate(heads)}


MIXED = ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")


def i3d_weights() -> dict[str, torch.Tensor]:
    """All layers, with few channels each, and 7 features."""
    generator, found = torch.Generator().manual_seed(0), {}
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731

    def unit(layer: str, into: int, out: int, side: int) -> int:
        found[f"params/{layer}/Conv_0/kernel"] = draw(out, into, side, side, side) * (2 / (into * side**3)) ** 0.5
        found[f"params/{layer}/BatchNorm_0/bias"] = draw(out) * 0.3
        found[f"batch_stats/{layer}/BatchNorm_0/mean"] = draw(out) * 0.3
        found[f"batch_stats/{layer}/BatchNorm_0/var"] = draw(out).exp()
        return out

    width = unit("Conv3d_1a_7x7", 3, 4, 7)
    width = unit("Conv3d_2b_1x1", width, 5, 1)
    width = unit("Conv3d_2c_3x3", width, 6, 3)
    for name in MIXED:
        layer = f"Mixed_{name}"
        total = unit(f"{layer}/Branch_0/Conv3d_0a_1x1", width, 2, 1)
        for branch, out in ((1, 3), (2, 2)):
            middle = unit(f"{layer}/Branch_{branch}/Conv3d_0a_1x1", width, 3, 1)
            total += unit(f"{layer}/Branch_{branch}/Conv3d_0b_3x3", middle, out, 3)
        width = total + unit(f"{layer}/Branch_3/Conv3d_0b_1x1", width, 2, 1)
    found["params/Logits/Conv3d_0c_1x1/Conv_0/kernel"] = draw(7, width, 1, 1, 1)
    found["params/Logits/Conv3d_0c_1x1/Conv_0/bias"] = draw(7)
    return found
