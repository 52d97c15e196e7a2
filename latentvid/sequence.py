"""Ulysses sequence parallelism (Jacobs et al. 2023): packs longer than one device holds, cut over a group of processes.

Each process of a group holds a piece of the pack's tokens and does everything that is token by token on it alone. For
self-attention the group trades pieces of all heads for all tokens of some heads, and back. For gradients every process
is one more data-parallel rank, whose loss is that of its own tokens; so this composes with any strategy that sums
gradients over ranks, and asks nothing of it.

Axes: T tokens in a pack, t tokens of this process's piece, A heads, K head width, G processes of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import UserError
from .packing import cuts, overlaps, spans
from .world import CPU_LAUNCH


@dataclass(frozen=True)
class SequenceGroup:
    """The processes that share each pack; plain values, so that what holds it can be copied and pickled.

    name: of the process group, as torch.distributed knows it. rank: this process's place in the group, which is that
    of its piece in the pack. size: G.
    """

    name: str
    rank: int
    size: int

    def gather(self, x: Tensor, tokens: int) -> Tensor:
        """All heads of this piece [t, ..., A, K] -> this process's heads of all tokens [T, ..., A/G, K]."""
        return self.gather_rows(x, self._lengths(tokens))

    def shard(self, x: Tensor) -> Tensor:
        """This process's heads of all tokens [T, ..., A/G, K] -> all heads of this piece [t, ..., A, K]."""
        return self.shard_rows(x, self._lengths(x.shape[0]))

    def gather_rows(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """As `gather`, where the processes have `lengths` rows: what each has follows that of the one before."""
        parts = torch.cat(x.chunk(self.size, dim=-2))  # [G*t, ..., A/G, K], a part a receiver
        return _redistribute(parts, [x.shape[0]] * self.size, list(lengths), self.name)

    def shard_rows(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """The way back of `gather_rows`."""
        parts = _redistribute(x, list(lengths), [lengths[self.rank]] * self.size, self.name)
        return torch.cat(parts.chunk(self.size), dim=-2)

    def _lengths(self, tokens: int) -> list[int]:
        return [stop - start for start, stop in pairwise(cuts(tokens, self.size))]

    @torch.no_grad()
    def redistribute(
        self, lengths: Sequence[int], tokens: Tensor, text: Tensor, words: Sequence[int]
    ) -> tuple[Tensor, Tensor, list[int]]:
        """From the samples that each process made (`makers`), what this process's piece (`spans`) needs.

        lengths: tokens of each sample of the pack. tokens [n,P], text [s,Dt] and its `words` a sample are of those
        made here, in the pack's order. Returns the piece's tokens [t,P], the text of its samples, and the words of all.
        """
        pieces, maker = spans(lengths, self.size), makers(lengths, self.size)
        counts = list(zip(*(overlaps(lengths, piece) for piece in pieces), strict=True))
        tokens = self._deliver(tokens, maker, counts)
        made = [i for i, rank in enumerate(maker) if rank == self.rank]
        known = torch.zeros(len(maker), dtype=torch.int64)
        known[made] = torch.tensor(words, dtype=torch.int64)
        words = self.add_up(known.to(text.device)).tolist()  # of all samples: each maker knew its own
        counts = [[n if p.first <= i < p.last else 0 for p in pieces] for i, n in enumerate(words)]
        parts = dict(zip(made, text.split([words[i] for i in made]), strict=True)) if made else {}
        sent = [parts[i] for receiver in range(self.size) for i in made if counts[i][receiver]]
        return tokens, self._deliver(torch.cat([text[:0], *sent]), maker, counts), words

    def _deliver(self, rows: Tensor, maker: Sequence[int], counts: Sequence[Sequence[int]]) -> Tensor:
        """Sends what each process made of the pack's samples to those that need it.

        rows: what this process made, [n, ...]: for each receiver in turn, its rows of each sample in turn.
        maker: the process that made each sample; `counts[i][j]`: rows of sample i that process j needs.
        Returns this process's rows of every sample, in the order of the samples.
        """
        sent = [sum(counts[i][j] for i, m in enumerate(maker) if m == self.rank) for j in range(self.size)]
        taken = [sum(counts[i][self.rank] for i, m in enumerate(maker) if m == j) for j in range(self.size)]
        come = sorted(range(len(maker)), key=lambda i: maker[i])  # as they arrive: maker by maker, sample by sample
        parts = _redistribute(rows, sent, taken, self.name).split([counts[i][self.rank] for i in come])
        parts = dict(zip(come, parts, strict=True))
        return torch.cat([parts[i] for i in range(len(maker))])

    def add_up(self, x: Tensor) -> Tensor:
        """The sum of x over the group, on every process; takes no gradient."""
        x = x.clone()
        dist.all_reduce(x, group=dist.distributed_c10d._resolve_process_group(self.name))
        return x


def make_sequence_group(size: int) -> SequenceGroup | None:
    """This process's group where `size` consecutive processes share each pack; None where each has packs of its own.

    Every process of the world must call it. Raises UserError where the world cannot be divided so.
    """
    if size == 1:
        return None
    if not dist.is_initialized():
        raise UserError(
            f"train.sequence_parallel is {size}, but there is one process: launch at least {size} (on CPUs: "
            f"{CPU_LAUNCH.format(n=size)}), or set it to 1"
        )
    rank, world = dist.get_rank(), dist.get_world_size()
    if world % size:
        raise UserError(
            f"train.sequence_parallel is {size}, which does not divide the {world} processes: launch a multiple of "
            f"{size} (on CPUs: {CPU_LAUNCH.format(n=size)})"
        )
    groups = [dist.new_group(range(first, first + size)) for first in range(0, world, size)]
    return SequenceGroup(groups[rank // size].group_name, rank % size, size)


def makers(sizes: Sequence[int], processes: int) -> list[int]:
    """Which process makes each sample, so that all have about the same to do: largest first, to whom has least."""
    load, maker = [0] * processes, [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        maker[i] = min(range(processes), key=load.__getitem__)
        load[maker[i]] += sizes[i]
    return maker


# A custom operator, so that compiled blocks hold it as one opaque node. Operators take a group only by its name.


@torch.library.custom_op("latentvid::redistribute", mutates_args=())
def _redistribute(x: Tensor, sent: Sequence[int], taken: Sequence[int], group: str) -> Tensor:
    """Rows of x, sent[0] of them to the group's first process and so on -> taken[0] rows from its first and so on."""
    out = x.new_empty(sum(taken), *x.shape[1:])
    process_group = dist.distributed_c10d._resolve_process_group(group)
    dist.all_to_all_single(out, x.contiguous(), list(taken), list(sent), group=process_group)
    return out


@_redistribute.register_fake
def _(x: Tensor, sent: Sequence[int], taken: Sequence[int], group: str) -> Tensor:
    return x.new_empty(sum(taken), *x.shape[1:])


def _setup(ctx, inputs, output) -> None:
    _, ctx.sent, ctx.taken, ctx.group = inputs


def _backward(ctx, grad: Tensor):
    return _redistribute(grad, ctx.taken, ctx.sent, ctx.group), None, None, None


_redistribute.register_autograd(_backward, setup_context=_setup)
