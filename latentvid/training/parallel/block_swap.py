"""Blocks whose frozen weights lie in main memory, and on the device while they compute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import UserError
from ...words import counted

ALIGNED = 64  # bytes that a tensor begins at a multiple of
SLOTS = 2  # on the device: of the block that computes, and of the one that is brought meanwhile


class _Place(NamedTuple):
    module: nn.Module
    name: str
    parameter: nn.Parameter
    start: int  # bytes

    def within(self, flat: Tensor) -> Tensor:
        """Its elements in bytes [n] that hold a block."""
        p = self.parameter
        return flat.narrow(0, self.start, p.numel() * p.element_size()).view(p.dtype).view(p.shape)


class _Held:
    """A block's frozen parameters, in one run of bytes on the host (pinned where the device is a GPU)."""

    def __init__(self, block: nn.Module, shared: set[int], pinned: bool) -> None:
        self.places, start = [], 0
        for module in block.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and not parameter.requires_grad and id(parameter) not in shared:
                    self.places.append(_Place(module, name, parameter, start))
                    start += -(-parameter.numel() * parameter.element_size() // ALIGNED) * ALIGNED
        self.host = torch.empty(start, dtype=torch.uint8, pin_memory=pinned)
        for place in self.places:
            place.within(self.host).copy_(place.parameter.data)
        self.point_to(self.host)

    def point_to(self, flat: Tensor) -> None:
        for place in self.places:
            place.parameter.data = place.within(flat)


class Lane:
    """Copies from host to device beside what the device computes; on a CPU at once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def copy(self, slot: Tensor, source: Tensor) -> Any:
        """Begins once all that was asked of the device so far is done, which may read the slot; what to `wait` for."""
        if self.stream is None:
            slot.copy_(source)
            return None
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            slot.copy_(source, non_blocking=True)
            return self.stream.record_event()

    def wait(self, copied: Any) -> None:
        """What is asked of the device from here on comes after the copy. The host does not wait."""
        if copied is not None:
            torch.cuda.current_stream(self.device).wait_event(copied)


class BlockSwap:
    """Keeps the frozen weights of `count` of the blocks on the host; `SLOTS` of these blocks are on the device too.

    A block is brought before its pass, in the backward pass before it is computed again, and stays until its slot is
    needed; the next one in the direction of the pass comes meanwhile. What brings it in the backward pass is that the
    blocks are recomputed: autograd then comes to a block when it is done with the one after it, so that no weight that
    it still needs is written over. Without recomputing it would be.

    blocks: in the order in which they run, on the host. Raises UserError where fewer have weights that stay.
    """

    def __init__(self, blocks: Sequence[nn.Module], count: int, device: torch.device) -> None:
        chosen = chosen_blocks(blocks, count)
        shared = _shared(blocks)
        self.held = [_Held(block, shared, device.type == "cuda") for block in chosen]
        self.device, self.lane = device, Lane(device)
        self.slots: list[Tensor] = []
        self.inside: list[int | None] = [None] * SLOTS  # number of the block in each slot
        self.copied: list[Any] = [None] * SLOTS
        self.current, self.before = 0, -1  # slot, and number, of the block that came last
        for number, block in enumerate(chosen):
            block.register_forward_pre_hook(lambda module, args, number=number: self.bring(number))

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Inside, the model has no parameters in swapped blocks but those that are trained: to be moved and wrapped."""
        places = [place for held in self.held for place in held.places]
        for place in places:
            place.module._parameters[place.name] = None
        try:
            yield
        finally:
            for place in places:
                place.module._parameters[place.name] = place.parameter

    def bring(self, number: int) -> None:
        """Before a pass of the block `number` of the swapped ones."""
        if number not in self.inside:
            self._copy(number)
        self.current = self.inside.index(number)
        self.lane.wait(self.copied[self.current])
        self.held[number].point_to(self.slots[self.current])  # not before it is there: others may look at the weights
        following = self._following(number, recorded=torch.is_grad_enabled())
        if following is not None and following not in self.inside:
            self._copy(following)
        self.before = number

    def _following(self, number: int, recorded: bool) -> int | None:
        """The block that will be asked for next, where that is known. recorded: the pass is for a backward pass, which
        begins with the last blocks, and these are here."""
        last = len(self.held) - 1
        if 0 < number < self.before or (recorded and number == self.before == last > 0):
            return number - 1
        if number < last:
            return number + 1
        return None if recorded else 0

    def _copy(self, number: int) -> None:
        """Into the slot that is not the current one's."""
        if not self.slots:
            size = max(held.host.numel() for held in self.held)
            self.slots = [torch.empty(size, dtype=torch.uint8, device=self.device) for _ in range(SLOTS)]
        slot = 1 - self.current
        if (left := self.inside[slot]) is not None:
            self.held[left].point_to(self.held[left].host)
        host = self.held[number].host
        self.copied[slot] = self.lane.copy(self.slots[slot].narrow(0, 0, host.numel()), host)
        self.inside[slot] = number


def swapped(model: nn.Module, blocks: Sequence[nn.Module], count: int, device: torch.device) -> BlockSwap | None:
    """With `count` of a model's blocks on the host; None for none. Some models have blocks of several lists in turn."""
    return BlockSwap(getattr(model, "in_order", blocks), count, device) if count else None


def chosen_blocks(blocks: Sequence[nn.Module], count: int) -> list[nn.Module]:
    """So many of those that have frozen weights, evenly spread, so that the others give time to bring the next. Raises
    UserError."""
    able = [block for block in blocks if any(not p.requires_grad for p in block.parameters())]
    if count > len(able):
        raise UserError(
            f"train.swap_blocks={count}: of {counted(len(able), 'block')} the weights stay as they are, and others "
            "cannot be swapped: give at most so many; adapter.kind=lora leaves all as they are"
        )
    return [able[(2 * i + 1) * len(able) // (2 * count)] for i in range(count)]


def swapped_bytes(blocks: Sequence[nn.Module], count: int) -> int:
    """That a device holds less of frozen weights, its slots counted."""
    sizes = _sizes(blocks, count)
    return sum(sizes) - SLOTS * max(sizes, default=0)


def host_bytes(blocks: Sequence[nn.Module], count: int) -> int:
    """Of frozen weights in main memory."""
    return sum(_sizes(blocks, count))


def _sizes(blocks: Sequence[nn.Module], count: int) -> list[int]:
    shared = _shared(blocks)
    return [_frozen(block, shared) for block in chosen_blocks(blocks, count)] if count else []


def _frozen(block: nn.Module, shared: set[int]) -> int:
    frozen = (p for p in block.parameters() if not p.requires_grad and id(p) not in shared)
    return sum(p.numel() * p.element_size() for p in frozen)


def _shared(blocks: Sequence[nn.Module]) -> set[int]:
    """Parameters that several blocks have: they stay on the device."""
    seen: set[int] = set()
    found: set[int] = set()
    for block in blocks:
        mine = {id(p) for p in block.parameters()}
        found |= mine & seen
        seen |= mine
    return found
