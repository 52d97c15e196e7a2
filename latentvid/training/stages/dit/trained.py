"""Which of a model's parameters are trained: all, those of some names, or a LoRA's beside them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from ....config.schema import DitConfig
from ....errors import UserError
from ....models.adapters.lora import raw_of
from ....models.open import OpenBackbone
from ....models.transformer import VideoDiT
from ....rng import derived_seed

OF_VIDEO_DIT = ("query", "key_value", "out")  # LoRA's usual places: the attentions of each block
SAMPLED = 16_384  # numbers of each tensor that its fingerprint looks at
LAYERS = (nn.Linear, nn.Conv2d, nn.Conv3d)  # that peft puts matrices beside


def choose_trained(model: VideoDiT | OpenBackbone, config: DitConfig, usual: Sequence[str]) -> None:
    """Freezes what is not trained, and adds a LoRA's matrices in fp32. usual: endings of the layers' names in the
    blocks that a LoRA changes where the configuration names none.

    Raises UserError for a name that nothing has.
    """
    if config.adapter.kind == "lora":
        add_lora(model, config, usual)
    elif config.trainable:
        live = {name for name, _ in named(model) if not is_idle(model, name)}
        for pattern in config.trainable:
            if not any(re.search(pattern, name) for name in live):
                raise UserError(f"trainable: {pattern!r} is found in no parameter's name: {_examples(model)}")
        for name, parameter in named(model):
            parameter.requires_grad_(name in live and any(re.search(pattern, name) for pattern in config.trainable))


def add_lora(model: VideoDiT | OpenBackbone, config: DitConfig, usual: Sequence[str]) -> None:
    settings, raw = config.adapter, raw_of(model)
    raw.requires_grad_(False)
    layers = [name for name, m in raw.named_modules() if isinstance(m, LAYERS) and not is_idle(model, name)]
    if settings.targets:
        wanted, among = settings.targets, layers
    else:
        inside = {id(m) for block in model.blocks for m in block.modules()}
        wanted, among = usual, [name for name in layers if id(raw.get_submodule(name)) in inside]
    chosen: list[str] = []
    for ending in wanted:
        found = [name for name in among if f".{name}".endswith(f".{ending}")]
        if not found:
            key = "adapter.targets" if settings.targets else "adapter"
            raise UserError(f"{key}: no layer's name ends in {ending!r}: there are {_few(among)}")
        chosen += found
    lora = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.rank if settings.alpha is None else settings.alpha,
        target_modules=sorted(set(chosen)),
        lora_dropout=settings.dropout,
    )
    torch.manual_seed(config.run.seed)
    inject_adapter_in_model(lora, raw)
    raw._hf_peft_config_loaded = True  # as `add_adapter` of diffusers does
    for parameter in raw.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def named(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(raw_of(model).named_parameters())


def is_idle(model: nn.Module, name: str) -> bool:
    """Whether what has that name takes no part in the pass, such as the sound of LTX-2: nothing there is trained."""
    return isinstance(model, OpenBackbone) and model.idle(name)


def fingerprint(model: nn.Module) -> str:
    """sha256 (hex) over names, types and shapes of the parameters, and some numbers of each, evenly spread: whoever
    trains a model changes them."""
    digest = hashlib.sha256()
    for name, parameter in sorted(named(model)):
        flat = parameter.detach().flatten()
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        some = flat[:: max(1, len(flat) // SAMPLED)].contiguous().cpu()
        digest.update(some.view(torch.uint8).numpy())
    return digest.hexdigest()


def dropout_of(config: DitConfig, number: int) -> AbstractContextManager[None]:
    """Inside, a LoRA's dropout draws by the run's seed and a sample's number: the same where a run goes on."""
    return (
        _seeded(derived_seed(config.run.seed, number, "adapter-dropout")) if config.adapter.dropout else nullcontext()
    )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _examples(model: nn.Module) -> str:
    """Of modules that have parameters."""
    names = [name for name, _ in named(model) if not is_idle(model, name)]
    return _few([name.removesuffix(".weight").removesuffix(".bias") for name in names])


def _few(names: Sequence[str]) -> str:
    """Distinct names without the blocks' numbers."""
    distinct = list(dict.fromkeys(re.sub(r"\.\d+\.", ".N.", name) for name in names))
    return ", ".join(distinct[:12]) + (", ..." if len(distinct) > 12 else "")
