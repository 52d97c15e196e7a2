"""Small random instances of published transformers for the tests of LoRA: what their own forward makes of a clip."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from diffusers import (
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
    WanPipeline,
    WanTransformer3DModel,
)
from open_models import lively
from torch import Tensor, nn

from latentvid.models.adapters.layer_names import layers_of
from latentvid.models.adapters.lora_files import Change

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
ADDED = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


class Family(NamedTuple):
    """A class of diffusers.

    make: a raw model. run: its output for a fixed clip. pipeline: of diffusers, over it and without its other parts;
    None: it has no loader of LoRA. targets: endings of layers' names.
    """

    cls: str
    make: Callable[..., nn.Module]
    run: Callable[[nn.Module], Tensor]
    pipeline: Callable[[nn.Module], object] | None
    targets: tuple[str, ...]


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def wan(**more) -> nn.Module:
    sizes = dict(num_attention_heads=2, attention_head_dim=16, text_dim=24, freq_dim=32, ffn_dim=48, num_layers=2)
    return WanTransformer3DModel(**{"in_channels": 4, "out_channels": 4, **sizes, **more})


def run_wan(raw: nn.Module) -> Tensor:
    image = None if raw.config.image_dim is None else rand(1, 5, raw.config.image_dim)
    return raw(rand(1, raw.config.in_channels, 2, 4, 6), torch.tensor([500.0]), rand(1, 512, 24), image)[0]


def ltx(**more) -> nn.Module:
    sizes = dict(num_attention_heads=4, attention_head_dim=8, cross_attention_dim=32, num_layers=2)
    return LTXVideoTransformer3DModel(**{"in_channels": 8, "out_channels": 8, "caption_channels": 16, **sizes, **more})


def run_ltx(raw: nn.Module) -> Tensor:
    mask = torch.ones(1, 5)
    return raw(rand(1, 12, 8), rand(1, 5, 16), torch.tensor([[500.0]]), mask, 2, 2, 3, (0.3, 32, 32))[0]


def cogvideox(**more) -> nn.Module:
    sizes = dict(num_attention_heads=2, attention_head_dim=16, time_embed_dim=16, text_embed_dim=24, num_layers=2)
    shape = dict(sample_width=6, sample_height=4, sample_frames=5, patch_size=2, max_text_seq_length=6)
    return CogVideoXTransformer3DModel(**{"in_channels": 4, "out_channels": 4, **sizes, **shape, **more})


def run_cogvideox(raw: nn.Module) -> Tensor:
    return raw(rand(1, 2, 4, 4, 6), rand(1, 6, 24), torch.tensor([500]))[0]


SMALL = dict(num_attention_heads=2, attention_head_dim=16, num_layers=2, num_refiner_layers=1, text_embed_dim=24)


def hunyuan(**more) -> nn.Module:
    sizes = dict(num_single_layers=2, pooled_projection_dim=12, rope_axes_dim=(4, 6, 6))
    return HunyuanVideoTransformer3DModel(**{"in_channels": 4, "out_channels": 4, **SMALL, **sizes, **more})


def run_hunyuan(raw: nn.Module) -> Tensor:
    text = rand(1, 5, 24), torch.ones(1, 5), rand(1, 12)
    return raw(rand(1, 4, 2, 4, 6), torch.tensor([500.0]), *text, torch.tensor([6000.0]))[0]


def hunyuan15(**more) -> nn.Module:
    sizes = dict(text_embed_2_dim=20, image_embed_dim=12, rope_axes_dim=(4, 6, 6), patch_size=1)
    return HunyuanVideo15Transformer3DModel(**{"in_channels": 9, "out_channels": 4, **SMALL, **sizes, **more})


def run_hunyuan15(raw: nn.Module) -> Tensor:
    text = rand(1, 5, 24), torch.ones(1, 5)
    second = rand(1, 3, 20), torch.ones(1, 3)
    return raw(rand(1, 9, 2, 3, 4), torch.tensor([500.0]), *text, None, *second, rand(1, 5, 12))[0]


def mochi(**more) -> nn.Module:
    sizes = dict(num_attention_heads=2, attention_head_dim=16, num_layers=3, pooled_projection_dim=24)
    text = dict(text_embed_dim=32, time_embed_dim=16, max_sequence_length=8)
    return MochiTransformer3DModel(**{"patch_size": 2, "in_channels": 4, **sizes, **text, **more})


def run_mochi(raw: nn.Module) -> Tensor:
    return raw(rand(1, 4, 2, 4, 6), rand(1, 5, 32), torch.tensor([500.0]), torch.ones(1, 5).bool())[0]


def alone(pipeline: type, *parts: str) -> Callable[[nn.Module], object]:
    """The pipeline with a transformer and none of its other parts."""
    none = dict.fromkeys(("vae", "text_encoder", "tokenizer", *parts))
    return lambda raw: pipeline(transformer=raw, scheduler=FlowMatchEulerDiscreteScheduler(), **none)


FAMILIES = {
    "wan": Family(
        "WanTransformer3DModel", wan, run_wan, alone(WanPipeline), (*ATTENTION, "ffn.net.0.proj", "ffn.net.2")
    ),
    "ltx": Family(
        "LTXVideoTransformer3DModel", ltx, run_ltx, alone(LTXPipeline), (*ATTENTION, "ff.net.0.proj", "ff.net.2")
    ),
    "cogvideox": Family(
        "CogVideoXTransformer3DModel", cogvideox, run_cogvideox, alone(CogVideoXPipeline), (*ATTENTION, "ff.net.2")
    ),
    "hunyuan": Family(
        "HunyuanVideoTransformer3DModel",
        hunyuan,
        run_hunyuan,
        alone(HunyuanVideoPipeline, "text_encoder_2", "tokenizer_2"),
        (*ATTENTION, *ADDED, "proj_mlp", "proj_out"),
    ),
    "hunyuan15": Family(
        "HunyuanVideo15Transformer3DModel", hunyuan15, run_hunyuan15, None, (*ATTENTION, *ADDED, "ff.net.2")
    ),
    "mochi": Family(
        "MochiTransformer3DModel", mochi, run_mochi, alone(MochiPipeline), (*ATTENTION, *ADDED, "ff.net.0.proj")
    ),
}


def model(family: str, **more) -> nn.Module:
    """The same numbers at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lively(FAMILIES[family].make(**more))


def matrices(inputs: int | tuple[int, ...], outputs: int, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """A and B of a size that changes what a layer makes by about as much as it is."""
    generator = torch.Generator().manual_seed(seed)
    inputs = (inputs,) if isinstance(inputs, int) else inputs
    a = torch.randn(rank, *inputs, generator=generator) / torch.tensor(inputs).prod() ** 0.5
    return a, torch.randn(outputs, rank, generator=generator) * 0.3


def random_changes(raw: nn.Module, targets: tuple[str, ...], rank: int = 3) -> dict[str, Change]:
    """Of the layers of these names' endings; every fourth has another rank."""
    found = {}
    for i, (name, layer) in enumerate(layers_of(raw).items()):
        if name.endswith(targets):
            into = tuple(layer.weight.shape[1:])
            found[name] = Change(*matrices(into, len(layer.weight), rank + (i % 4 == 0), i))
    return found


def added(raw: nn.Module, changes: dict[str, Change]) -> nn.Module:
    """The model with the changes in its weights, as dense matrices: the reference."""
    with torch.no_grad():
        for name, change in changes.items():
            weight = raw.get_submodule(name).weight
            weight += (change.b @ change.a.flatten(1)).reshape(weight.shape)
            if change.bias is not None:
                raw.get_submodule(name).bias.add_(change.bias)
    return raw
