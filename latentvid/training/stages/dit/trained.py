"""Which of a model's parameters are trained: all, those of some names, or an adapter's beside them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from ....config.schema import DitConfig
from ....errors import UserError
from ....models.adapters.lora import raw_of
from ....models.open import OpenBackbone
from ....models.transformer import VideoDiT
from ....rng import derived_seed
from .beside import add_adapter, few, is_idle

OF_VIDEO_DIT = ("query", "key_value", "out")  # LoRA's usual places: the attentions of each block
SAMPLED = 16_384  # numbers of each tensor that its fingerprint looks at


def choose_trained(model: VideoDiT | OpenBackbone, config: DitConfig, usual: Sequence[str]) -> None:
    """Freezes what is not trained, and adds an adapter's matrices in fp32. usual: endings of the layers' names in the
    blocks that an adapter changes where the configuration names none.

    Raises UserError for a name that nothing has.
    """
    if config.adapter.kind != "none":
        add_adapter(model, config, usual)
    elif config.trainable:
        live = {name for name, _ in named(model) if not is_idle(model, name)}
        for pattern in config.trainable:
            if not any(re.search(pattern, name) for name in live):
                raise UserError(f"trainable: {pattern!r} is found in no parameter's name: {_examples(model)}")
        for name, parameter in named(model):
            parameter.requires_grad_(name in live and any(re.search(pattern, name) for pattern in config.trainable))


def named(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(raw_of(model).named_parameters())


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
    """Inside, an adapter's dropout draws by the run's seed and a sample's number: the same where a run goes on."""
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
    return few([name.removesuffix(".weight").removesuffix(".bias") for name in names])
