"""Control branches beside a model (ControlNet, Zhang et al. 2023), and what they read in a pass.

A branch has copies of some of the model's blocks, one in `every`: of blocks 0, `every`, 2 `every` and so on. The first
copy reads what the model's first block reads, plus a map of the signal's tokens; each further copy reads what the copy
before it made. What each copy makes goes through a map of its own, whose weights are zero at first, and is added to
what the block makes that it is a copy of. So at first the model computes what it did without the branch.

Axes: T tokens in a pack, P token features, N segments (samples), D model width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..packing import Packed, patch_size


@dataclass(frozen=True, eq=False)
class Control:
    """What some of a model's branches read in one pass.

    branches: their numbers in `model.controls`. tokens: of each the clean latent patches of its signal [T,P], in the
    pack's order. scales: of each what its part is multiplied by, a sample [N]; None: 1. At scale 0 the tokens are of
    no account.
    """

    branches: tuple[int, ...]
    tokens: tuple[Tensor, ...]
    scales: tuple[Tensor | None, ...]

    @classmethod
    def of(cls, tokens: Tensor) -> Control:
        """Of the one branch of a model, for all samples."""
        return cls((0,), (tokens,), (None,))

    def map(self, change: Callable[[Tensor], Tensor]) -> Control:
        parts = ("tokens", "scales")
        return replace(
            self, **{name: tuple(x if x is None else change(x) for x in getattr(self, name)) for name in parts}
        )


@dataclass(frozen=True)
class Reads:
    """What a branch reads and how it acts in sampling.

    role: of the references that are its signal. scale: what its part is multiplied by. start, end: the part of the
    sampling steps in which it acts, in shares of them.
    """

    role: str = "control"
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0


class ControlBranch(nn.Module):
    """The names are those of diffusers' ControlNets of transformers (Flux, Qwen-Image).

    Where blocks have a state beside the tokens, such as the text of joint attention, the copies have one of their own.
    """

    def __init__(self, model: nn.Module, every: int, reads: Reads | None = None) -> None:
        """Of a whole model, whose blocks are copied in fp32; its adapters are not."""
        super().__init__()
        self.every, self.reads = every, reads or Reads()
        copied = [model.blocks[i] for i in range(0, len(model.blocks), every)]
        self.controlnet_x_embedder = nn.Linear(model.latent_channels * patch_size(model.patch), model.width)
        self.transformer_blocks = nn.ModuleList(copy.deepcopy(block).float() for block in copied)
        self.controlnet_blocks = nn.ModuleList(nn.Linear(model.width, model.width) for _ in copied)
        for linear in (self.controlnet_x_embedder, *self.controlnet_blocks):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        idle = model.idle_parameters()
        for original, made in zip(copied, self.transformer_blocks, strict=True):
            for parameter, own in zip(original.parameters(), made.parameters(), strict=True):
                own.requires_grad_(id(parameter) not in idle)
        self.to(next(model.blocks[0].parameters()).device)


class Way:
    """A branch in one pass, beside the model's blocks in their order."""

    def __init__(self, branch: ControlBranch, tokens: Tensor, scale: Tensor | None, run: Callable[..., Any]) -> None:
        """scale: [T,1], or None: 1. run: calls a block."""
        self.branch, self.tokens, self.scale, self.run = branch, tokens, scale, run
        self.number = 0  # of the next block
        self.state: tuple[Tensor, ...] = ()

    def after(self, arguments: Sequence[Any], made: Any) -> Any:
        """What the next block of the model reads, by what a block read and made."""
        number, branch = self.number, self.branch
        self.number += 1
        if number % branch.every:
            return made
        several = isinstance(made, tuple)
        own = len(made) if several else 1
        if not number:
            x, *others = arguments[:own]
            self.state = (_added(x, branch.controlnet_x_embedder(self.tokens)), *others)
        place = number // branch.every
        found = self.run(branch.transformer_blocks[place], *self.state, *arguments[own:])
        self.state = found if several else (found,)
        part = branch.controlnet_blocks[place](self.state[0][: len(self.tokens)])
        if several and torch.is_grad_enabled() and place + 1 == len(branch.transformer_blocks):
            part = part + 0.0 * sum(x.sum() for x in self.state[1:])  # so that all weights have a gradient, as DDP asks
        if self.scale is not None:
            part = self.scale * part
        return (_added(made[0], part), *made[1:]) if several else _added(made, part)


def _added(x: Tensor, part: Tensor) -> Tensor:
    """x [T,D], or [T+S,D] with the text's tokens after the clip's, plus [T,D] in the first rows."""
    part = part.to(x.dtype)
    return x + (part if len(part) == len(x) else F.pad(part, (0, 0, 0, len(x) - len(part))))


class Controllable:
    """Of a backbone, beside `nn.Module`: it calls its blocks by `_run`, in their order, inside `_controlled`.

    `controls`: its branches, an `nn.ModuleList` that is empty at first.
    """

    controls: nn.ModuleList
    gradient_checkpointing: bool
    _ways: tuple[Way, ...] = ()

    def idle_parameters(self) -> set[int]:
        """`id` of the parameters that take no part in the pass."""
        return set()

    def _run(self, block: nn.Module, *arguments: Any) -> Any:
        """What the block makes, with what the branches add to it."""
        made = self._computed(block, *arguments)
        for way in self._ways:
            made = way.after(arguments, made)
        return made

    def _computed(self, block: nn.Module, *arguments: Any) -> Any:
        """With gradient checkpointing it is computed again in the backward pass."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *arguments, use_reentrant=False)
        return block(*arguments)

    @contextmanager
    def _controlled(self, control: Control | None, layout: Packed) -> Iterator[None]:
        """Inside, the branches that `control` names act. Raises ValueError where it does not fit."""
        if control is None:
            yield
            return
        ways = []
        for number, tokens, scale in zip(control.branches, control.tokens, control.scales, strict=True):
            if len(tokens) != layout.tokens or (scale is not None and scale.shape != (layout.segments,)):
                raise ValueError(f"a signal of {len(tokens)} tokens for a pack of {layout.tokens}: give one for each")
            of_token = None if scale is None else scale.index_select(0, layout.segment)[:, None]
            ways.append(Way(self.controls[number], tokens, of_token, self._computed))
        self._ways = tuple(ways)
        try:
            yield
        finally:
            self._ways = ()


def runnable_blocks(model: nn.Module) -> list[nn.Module]:
    """A model's blocks, its temporal ones too, the copies of its branches, and those of its critic (with_critic.py)."""
    copies = (block for branch in getattr(model, "controls", ()) for block in branch.transformer_blocks)
    of_critic = getattr(getattr(model, "critic", None), "blocks", ())
    return [*model.blocks, *getattr(model, "temporal", ()), *copies, *of_critic]
