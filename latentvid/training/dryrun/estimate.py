"""Memory and time of a training step on many devices: counted FLOPs and bytes over measured and stated rates.

What is assumed, for every strategy:

- Forward and backward reach `efficiency` of the rate of large matrix products; what is recomputed costs time, but is
  no model FLOP. All ranks work equally long (`data/plan.py` sees to that).
- The optimiser's step is bound by memory: clipping, AdamW and the average move 52 bytes a parameter (`UPDATE_BYTES`).
- Collectives are rings over all devices. One sends and takes (n-1)/n of a tensor's bytes for a gather of shards or a
  scatter of sums, twice that for an all-reduce, at the slower of a device's link inside a node and the node's adapters
  together, times `reached`; each of its n-1 hops adds a latency. All state travels in fp32.
- DDP's all-reduce runs beside the last pack's backward pass, FSDP2's gathers beside forward and backward passes and its
  scatters beside the last backward pass; one block's part is always waited for. ZeRO overlaps nothing
  (`overlap_comm: false` in configs/deepspeed/). Ulysses' exchanges are waited for in full.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ...models.flops import TRAINING
from ...models.open.flops import blank_inputs
from ...models.transformer import VideoDiT
from ...packing import Grid
from .memory import PassBytes, StateBytes, pass_bytes

UPDATE_BYTES = 52  # norm 4, clipping 8, AdamW 28, average 12: bytes read and written of one fp32 parameter
ZERO_BUCKET = 4 * 100_000_000  # bytes: reduce_bucket_size of configs/deepspeed/, in fp32
UNKNOWN = "strategy {!r}: single, DDP, FSDP2, ZeRO-1, ZeRO-2 or ZeRO-3"
GATHERED_BLOCKS = 2  # of FSDP2 beside the one of StateBytes: the next one's weights, and gradients to be scattered
LIVE_WEIGHTS = 4e9  # bytes that ZeRO-3 leaves gathered: stage3_max_live_parameters is 1e9 where nothing else is said


@dataclass(frozen=True)
class Cluster:
    """What one device does in a second, and what joins devices.

    matmul: FLOP/s of large bf16 products. efficiency: the share of it that forward and backward reach. copy: bytes/s
    that elementwise passes read and write. memory: bytes. node: devices of a node. inside: bytes/s one way from a
    device to others of its node; outside: to other nodes. reached: share of both that large exchanges get. hop_inside,
    hop_outside: seconds that a step of a ring takes beside its bytes.
    """

    matmul: float
    efficiency: float
    copy: float
    memory: float
    node: int = 8
    inside: float = 450e9
    outside: float = 50e9
    reached: float = 0.8
    hop_inside: float = 3.4e-6
    hop_outside: float = 9.6e-6

    def ring(self, devices: int, size: float) -> float:
        """Seconds to gather a tensor of `size` bytes from its shards, or to scatter its sums, over `devices`."""
        if devices == 1:
            return 0.0
        nodes = -(-devices // self.node)
        rate = self.inside if nodes == 1 else min(self.inside, self.outside * self.node)
        hops = (devices - nodes) * self.hop_inside + (nodes - 1) * self.hop_outside
        return (devices - 1) / devices * size / (rate * self.reached) + hops

    def trade(self, devices: int, size: float) -> float:
        """Seconds in which every device sends `size` bytes in equal parts to itself and the others."""
        near = min(devices, self.node)
        within = (near - 1) / devices * size / (self.inside * self.reached) + (near - 1) * self.hop_inside
        beyond = (devices - near) / devices * size / (self.outside * self.reached)
        return within + beyond + (self.hop_outside if devices > near else 0.0)


# matmul, copy and memory as seen on one H200; links by NVIDIA's datasheets (docs/scaling.md says which)
H200 = Cluster(matmul=790e12, efficiency=0.5, copy=4.3e12, memory=149e9)


@dataclass(frozen=True)
class Step:
    """One training step.

    flops: forward, of one pack. tokens: of one pack. packs: of the step, over all devices. sequence: devices that share
    a pack. recompute: with gradient checkpointing. weights, trained, block: bytes in fp32 of the parameters, of the
    trained ones, of the largest block. width, depth: of the network.
    """

    flops: float
    tokens: float
    packs: int
    weights: float
    trained: float
    block: float
    width: int
    depth: int
    sequence: int = 1
    recompute: bool = False

    def packs_each(self, devices: int) -> int:
        """Packs that a group of `sequence` devices works on in turn; ValueError where they do not come out even."""
        groups = devices // self.sequence
        if devices % self.sequence or self.packs % groups:
            raise ValueError(f"{devices} devices, {self.sequence} a pack, cannot share {self.packs} packs equally")
        return self.packs // groups


class Seconds(NamedTuple):
    """Of a step: computing, exchanges that nothing hides, the optimiser's update."""

    compute: float
    exchange: float
    update: float

    @property
    def all(self) -> float:
        return sum(self)


def step_seconds(step: Step, strategy: str, devices: int, cluster: Cluster) -> Seconds:
    """What the module's assumptions come to; `strategy` is a name of `memory.state_bytes`.

    Raises ValueError for another name, and where the devices cannot share the packs equally.
    """
    packs, depth = step.packs_each(devices), step.depth
    forward = step.flops / step.sequence / (cluster.matmul * cluster.efficiency)
    one = forward * (TRAINING + step.recompute)
    backward = one - forward
    gather, scatter = (_rings(cluster, devices, size, depth) for size in (step.weights, step.trained))
    if strategy in ("single", "DDP"):
        exchange = _left(2 * cluster.ring(devices, step.trained), backward, depth)
    elif strategy == "FSDP2":
        exchange = packs * _left(2 * gather, one, depth) + _left(scatter, backward, depth)
    elif strategy == "ZeRO-1":
        exchange = cluster.ring(devices, step.trained) + cluster.ring(devices, step.weights)
    elif strategy == "ZeRO-2":
        exchange = packs * cluster.ring(devices, step.trained) + cluster.ring(devices, step.weights)
    elif strategy == "ZeRO-3":
        exchange = packs * (2 * gather + scatter)
    else:
        raise ValueError(UNKNOWN.format(strategy))
    if step.sequence > 1:  # queries, keys, values and the output in bf16, for forward, backward and what is recomputed
        sent = 4 * 2 * step.tokens / step.sequence * step.width
        exchange += packs * (2 + step.recompute) * depth * cluster.trade(step.sequence, sent)
    mine = step.trained / (1 if strategy in ("single", "DDP") else devices)
    return Seconds(packs * one, exchange, mine / 4 * UPDATE_BYTES / cluster.copy)


def _rings(cluster: Cluster, devices: int, size: float, depth: int) -> float:
    """A ring for each block."""
    return depth * cluster.ring(devices, size / depth)


def _left(exchange: float, beside: float, depth: int) -> float:
    """What remains to be waited for of exchanges beside `beside` seconds of computing: one block's part at least."""
    return max(exchange - beside, exchange / depth)


def mfu(step: Step, seconds: Seconds, devices: int, cluster: Cluster) -> float:
    """Model FLOPs a second, forward and backward, over what the devices' matrix products reach."""
    return TRAINING * step.flops * step.packs / (seconds.all * devices * cluster.matmul)


def peak_bytes(
    strategy: str,
    state: StateBytes,
    passing: PassBytes,
    trained: float,
    block: float,
    packs: int,
    bucket: float = ZERO_BUCKET,
    weights: float | None = None,
) -> float:
    """The most that one device holds in a step, in bytes; frozen networks left out.

    Args:
        strategy: a name of `memory.state_bytes`; state: what that says it holds.
        passing: of the largest pack (of this device's piece of it).
        trained, block: bytes of the trained parameters, in fp32, and of the largest block.
        packs: that the device works on in a step, one after another.
        bucket: bytes in which ZeRO sums gradients.
        weights: bytes of all parameters, where some are frozen.

    Gradients of the only pack come while its activations leave; those of packs before it are there already. DDP's are
    in its buckets, which it holds from the start. FSDP2 keeps gradients whole between the packs of a step, and in
    computing holds `GATHERED_BLOCKS` more blocks than `state` says. ZeRO-3 holds its gradients' shards always, and
    leaves up to `LIVE_WEIGHTS` gathered, as it turned out twice over. Raises ValueError for another strategy.
    """
    fixed = state.weights + state.optimizer + state.average
    part = state.gradients / trained
    alone = max(passing.forward, passing.leaving + part * (passing.staying - passing.leaving))
    later = max(passing.forward, passing.leaving)  # beside gradients
    if strategy == "DDP":
        return fixed + trained + later
    if strategy in ("single", "ZeRO-1"):  # gradients are whole: part is 1
        beside = bucket if strategy == "ZeRO-1" else 0
        return fixed + beside + (alone if packs == 1 else later + trained)
    if strategy == "FSDP2":
        return fixed + GATHERED_BLOCKS * block + (alone if packs == 1 else later + trained)
    if strategy == "ZeRO-2":
        return fixed + bucket + (alone if packs == 1 else later + state.gradients)
    if strategy != "ZeRO-3":
        raise ValueError(UNKNOWN.format(strategy))
    gathered = 2 * min(LIVE_WEIGHTS, trained if weights is None else weights) - block  # `state` has one block
    return fixed + state.gradients + bucket + gathered + later


def dit_pass_bytes(
    config: Mapping[str, Any], grids: Sequence[Grid], text_lengths: Sequence[int], checkpointing: bool
) -> PassBytes:
    """`backbone_pass_bytes` of a `VideoDiT` of this config."""

    def make(depths: Mapping[str, int]) -> VideoDiT:
        return VideoDiT(**{**config, **depths})

    return backbone_pass_bytes(make, {"depth": config["depth"]}, grids, text_lengths, checkpointing)


def backbone_pass_bytes(
    make: Callable[[Mapping[str, int]], nn.Module],
    depths: Mapping[str, int],
    grids: Sequence[Grid],
    text_lengths: Sequence[int],
    checkpointing: bool,
) -> PassBytes:
    """`memory.pass_bytes` in bf16 on a GPU of a backbone, whatever its size: counted on few blocks.

    make: the backbone with so many blocks of each kind; what it trains has gradients. depths: how many it really has.
    grids, text_lengths: token grid and text tokens of each sample of the pack (or of one device's piece).
    """
    few = dict.fromkeys(depths, 3)
    shallow, trained = _counted(make, few, grids, text_lengths, checkpointing)
    deeper = {kind: _counted(make, few | {kind: 5}, grids, text_lengths, checkpointing) for kind in depths}
    blocks = {kind: (more - trained) / 2 for kind, (_, more) in deeper.items()}  # gradients of one of each kind

    def at(field: str, counts: Mapping[str, int]) -> int:
        start = getattr(shallow, field)
        return round(start + sum((counts[k] - 3) * (getattr(d, field) - start) / 2 for k, (d, _) in deeper.items()))

    # as the backward pass goes on activations leave and gradients come, alike for each block: the most is at its start,
    # or at its end, for which these are two bounds
    leaving, five = at("leaving", depths), dict.fromkeys(depths, 5)
    every = trained + sum((depth - 3) * blocks[kind] for kind, depth in depths.items())
    last = at("staying", five) + sum((depth - 5) * blocks[kind] for kind, depth in depths.items())
    end = min(at("leaving", dict.fromkeys(depths, 1)) + every, last)
    return PassBytes(at("forward", depths), leaving, round(max(leaving, end)))


def _counted(
    make: Callable[[Mapping[str, int]], nn.Module],
    depths: Mapping[str, int],
    grids: Sequence[Grid],
    text_lengths: Sequence[int],
    checkpointing: bool,
) -> tuple[PassBytes, int]:
    """What passes take, and the bytes of their gradients."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = make(depths)
    arguments, conditions = blank_inputs(model, grids, text_lengths)

    def loss(call: Callable, pack: None, step: int) -> tuple[torch.Tensor, dict]:
        return (call(*arguments, **conditions) - arguments[0]).square().mean(), {}

    train = SimpleNamespace(mixed_precision="bf16", steps=1, compile=False)
    task = SimpleNamespace(model=model, blocks=model.blocks, loss=loss, config=SimpleNamespace(train=train))
    trained = sum(4 * p.numel() for p in model.parameters() if p.requires_grad)
    return pass_bytes(task, None, checkpointing, gpu=True), trained
