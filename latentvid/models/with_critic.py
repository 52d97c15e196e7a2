"""A transformer and its critic as one module: what few-step students are trained as (DMD2, Yin et al. 2024)."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from .transformer import VideoDiT

CRITIC = "critic"


class VideoDiTWithCritic(VideoDiT):
    """A VideoDiT, and another of the same arguments, its `critic`: one optimiser and one checkpoint hold both.

    It is its VideoDiT in all but `critic=True` of the forward pass. Both are called through it, since strategies gather
    weights and gradients where the whole module is called. It is not saved: `without_critic` has what is.
    """

    @functools.wraps(VideoDiT.__init__)
    def __init__(self, *args: Any, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        self.critic = VideoDiT(*args, **arguments)

    def begin_critic(self) -> None:
        """Overwrites the critic's weights with the model's own."""
        self.critic.load_state_dict(own_weights(self))

    def forward(self, *args: Any, critic: bool = False, **more: Any) -> Tensor:
        """As VideoDiT's, by the model itself, or by its critic.

        The critic learns at every step, the model itself at some. DDP waits for a gradient of each parameter: with the
        critic's pass the model's get one of zero. Shards of FSDP2, which waits for none, are of another type.
        """
        if not critic:
            return super().forward(*args, **more)
        self.critic.attention_backend = self.attention_backend
        self.critic.gradient_checkpointing = self.gradient_checkpointing
        found = self.critic(*args, **more)
        if not torch.is_grad_enabled():
            return found
        own = (p for name, p in self.named_parameters() if not _of_critic(name) and type(p) is nn.Parameter)
        return found + sum(p.sum() for p in own) * 0.0


def _of_critic(name: str) -> bool:
    return name.startswith(f"{CRITIC}.")


def own_weights(model: VideoDiTWithCritic) -> dict[str, Tensor]:
    """Without the critic's."""
    return {name: tensor for name, tensor in model.state_dict().items() if not _of_critic(name)}


def without_critic(model: VideoDiT) -> VideoDiT:
    """The VideoDiT alone, with copies of its weights; any other model as it is."""
    if not isinstance(model, VideoDiTWithCritic):
        return model
    alone = VideoDiT(**{key: value for key, value in model.config.items() if not key.startswith("_")})
    alone.load_state_dict(own_weights(model))
    alone.attention_backend = model.attention_backend
    return alone
