"""Attention of joint (MMDiT) blocks over packs: a sample's video tokens and its prompt's attend to each other.

Axes: T video tokens of this process, S text tokens, A heads, K head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from ...attention import packed_attention
from ...packing import Packed, Segments, spans
from ...sequence import SequenceGroup
from ...transfer import to_device
from ..attention_context import Rotary


@dataclass(frozen=True, eq=False)
class JointContext:
    """What the attention of joint blocks reads beside features: made once a forward pass.

    frame: int64 [T], the latent frame of each video token. sample: int64 [S], the sample of each text token.
    segments: of video and text together, a sample each, over the whole pack.
    order, back: rows of the pack's video and text as they arrive (process by process, video then text) -> sample by
        sample; and back.
    rotary: tables [T,1,K] for the video tokens; None: the model has none.
    rows: video and text tokens of each process that shares the pack, where several do.
    """

    frame: Tensor
    sample: Tensor
    segments: Segments
    order: Tensor
    back: Tensor
    rotary: Rotary | None
    backend: str
    sequence: SequenceGroup | None = None
    rows: tuple[int, ...] = ()

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[T+S,A,K] each, video tokens before text tokens, -> [T+S,A,K]."""
        if self.sequence is None:
            return self._attend(q, k, v)
        q, k, v = self.sequence.gather_rows(torch.stack([q, k, v], dim=1), self.rows).unbind(1)
        return self.sequence.shard_rows(self._attend(q, k, v), self.rows)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.index_select(0, self.order) for x in (q, k, v))
        return packed_attention(q, k, v, self.segments, self.segments, self.backend).index_select(0, self.back)


@dataclass(frozen=True)
class OwnText:
    """Of which prompts this process has the text tokens in joint blocks: those whose samples begin in its piece.

    skip: text tokens that are left to the process before, of a sample that began there.
    """

    skip: int

    def of(self, text: Tensor) -> Tensor:
        return text[self.skip :]


def make_joint_context(
    layout: Packed, text_layout: Packed, rotary: Rotary | None, backend: str, sequence: SequenceGroup | None = None
) -> tuple[JointContext, OwnText]:
    """The context of the blocks, and which of the text tokens stay here.

    text_layout: the prompts of the samples of `layout`; where that is a piece of a pack, `text_layout.whole` has those
    of the whole pack.
    """
    device = layout.segment.device
    if layout.whole is None:
        lengths, words = layout.lengths, text_layout.lengths
        order = _order([layout.tokens], [text_layout.tokens], lengths, words, [0] * len(lengths)).to(device)
        segments = _segments(lengths, words, device)
        own = OwnText(0)
        rows, sequence = (), None
    else:
        whole, all_words = layout.whole, text_layout.whole.lengths
        pieces = spans(whole.lengths, sequence.size)
        starts = [0, *accumulate(whole.lengths)]
        owner = [next(i for i, p in enumerate(pieces) if p.start <= starts[n] < p.stop) for n in range(len(all_words))]
        video = [p.stop - p.start for p in pieces]
        text = [sum(n for n, of in zip(all_words, owner, strict=True) if of == i) for i in range(sequence.size)]
        order = _order(video, text, whole.lengths, all_words, owner).to(device)
        segments = _segments(whole.lengths, all_words, device)
        here = pieces[sequence.rank]
        own = OwnText(0 if here.start == starts[here.first] else all_words[here.first])
        rows = tuple(v + t for v, t in zip(video, text, strict=True))
    context = JointContext(
        frame=layout.frame,
        sample=own.of(text_layout.segment),
        segments=segments,
        order=order,
        back=order.argsort(),
        rotary=rotary,
        backend=backend,
        sequence=sequence,
        rows=rows,
    )
    return context, own


def _segments(lengths: list[int], words: list[int], device: torch.device) -> Segments:
    both = [a + b for a, b in zip(lengths, words, strict=True)]
    return Segments(to_device([0, *accumulate(both)], device, torch.int32), max(both), both)


def _order(video: list[int], text: list[int], lengths: list[int], words: list[int], owner: list[int]) -> Tensor:
    """Rows, in the order process by process and there video then text, of each sample's video and text in turn.

    video, text: tokens on each process. lengths, words: of each sample. owner: the process with each sample's text.
    """
    begins = [0, *accumulate(v + t for v, t in zip(video, text, strict=True))]
    of_video = torch.cat([torch.arange(b, b + n) for b, n in zip(begins, video, strict=False)]).split(lengths)
    at = [b + n for b, n in zip(begins, video, strict=False)]
    parts = []
    for tokens, n, process in zip(of_video, words, owner, strict=True):
        parts += [tokens, torch.arange(at[process], at[process] + n)]
        at[process] += n
    return torch.cat(parts)
