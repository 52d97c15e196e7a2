"""Training published transformers on samples of different shapes: a pack, a loop over them, and padding, by the clock.

    python benchmarks/open_packs.py --json benchmarks/open_packs.json      # the table of docs/open_models.md

Twelve samples, no two of one shape, images and clips. Forward and backward pass of a step, by turns in one process:

pack        latentvid's packed pass over diffusers' modules: all samples in one
loop        diffusers' own forward on one sample after another, gradients added up: what a batch of one shape leaves
padding     the packed pass, where every sample has as many tokens as the longest; what is padding takes part in all
            linear layers, as keys nobody attends to it (as with kernels of variable length; a dense mask costs more)

All three have the same weights, texts and noise levels. A figure is the median over turns of the ratio to the pack of
the same turn.
"""

import argparse
import copy
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from diffusers import CogVideoXTransformer3DModel, WanTransformer3DModel
from mixed_shapes import pad
from torch import Tensor, nn

from latentvid.attention import BACKENDS
from latentvid.models.open import OpenBackbone, packed
from latentvid.packing import Packed, Segments

# token grids (latent frames, rows, columns): images of three sizes and five ratios, clips of 5 to 25 frames
GRIDS = [
    *((1, 8, 8), (1, 6, 10), (1, 10, 6), (1, 4, 6), (1, 5, 5)),
    *((2, 6, 6), (3, 4, 6), (3, 6, 4), (4, 4, 4), (5, 4, 6), (5, 6, 4), (7, 6, 6)),
]
CHANNELS, PATCH = 16, 2


@dataclass(frozen=True)
class Family:
    """make: a transformer of a width and depth. alone: its class's own forward on latents [1,C,f,h,w], a level [1] and
    text [1,S,Dt]. joint: text tokens attend too."""

    make: Callable[[int, int], nn.Module]
    alone: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
    words: int
    joint: bool


def wan(width: int, depth: int) -> nn.Module:
    return WanTransformer3DModel(
        num_attention_heads=width // 64,
        attention_head_dim=64,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=512,
        ffn_dim=4 * width,
        num_layers=depth,
    )


def cogvideox(width: int, depth: int) -> nn.Module:
    return CogVideoXTransformer3DModel(
        num_attention_heads=width // 64,
        attention_head_dim=64,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_embed_dim=512,
        num_layers=depth,
        sample_width=20,
        sample_height=20,
        sample_frames=25,
        max_text_seq_length=32,
    )


FAMILIES = {
    "Wan": Family(wan, lambda raw, z, t, text: raw(z, 1000 * t, text, return_dict=False)[0], words=32, joint=False),
    "CogVideoX": Family(
        cogvideox,
        lambda raw, z, t, text: raw(z.transpose(1, 2), text, 1000 * t - 1, return_dict=False)[0].transpose(1, 2),
        words=32,
        joint=True,
    ),
}


class Masked:
    """The backend `grouped` where samples are padded: as keys there are only the real tokens.

    real: rows of these among the keys of self-attention. true: their segments.
    """

    real: Tensor
    true: Segments

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layout_q: Segments, layout_kv: Segments) -> Tensor:
        if layout_kv is layout_q:
            k, v, layout_kv = k.index_select(0, self.real), v.index_select(0, self.real), self.true
        return BACKENDS["grouped"](q, k, v, layout_q, layout_kv)


class Ways:
    """A step of each way; all leave their gradients in their own copy of the model."""

    def __init__(self, family: Family, width: int, depth: int, scale: int) -> None:
        torch.manual_seed(0)
        self.family, self.grids = family, [(f, scale * h, scale * w) for f, h, w in GRIDS]
        self.raw = family.make(width, depth)
        self.packed = packed(copy.deepcopy(self.raw))
        self.padded = copy.deepcopy(self.packed)
        self.masked = BACKENDS["masked"] = Masked()
        self.layout = Packed.of(self.grids)
        self.text_layout = Packed.of_lengths([family.words] * len(self.grids))
        self.latents = [torch.randn(1, CHANNELS, f, h * PATCH, w * PATCH) for f, h, w in self.grids]
        self.texts = torch.randn(len(self.grids), family.words, 512)
        steps = torch.randint(1, 1000, (len(self.grids),))
        self.levels = steps / 1000.0
        self.tokens = torch.cat([tokens_of(z[0]) for z in self.latents])
        self.long, self.real = pad(self.layout, self.layout.max_len)
        self.padding = torch.zeros(self.long.tokens, self.tokens.shape[1]).index_copy_(0, self.real, self.tokens)
        self._mask(family.words if family.joint else 0)

    def _mask(self, words: int) -> None:
        """Which keys of a padded pack are real, where `words` text tokens follow each sample's."""
        length = self.layout.max_len + words
        rows = [i * length + torch.arange(n) for i, n in enumerate(self.layout.lengths)]
        more = [i * length + self.layout.max_len + torch.arange(words) for i in range(len(rows))]
        self.masked.real = torch.cat([x for pair in zip(rows, more, strict=True) for x in pair])
        self.masked.true = Packed.of_lengths([n + words for n in self.layout.lengths])

    def pack(self) -> Tensor:
        return self._backward(self._forward(self.packed, self.tokens, self.layout))

    def loop(self) -> Tensor:
        outs = []
        for i, z in enumerate(self.latents):
            y = self.family.alone(self.raw, z, self.levels[i : i + 1], self.texts[i : i + 1])
            outs.append(self._backward(tokens_of(y[0]), len(self.tokens)))
        return torch.cat(outs)

    def padding_(self) -> Tensor:
        self.padded.attention_backend = "masked"
        out = self._forward(self.padded, self.padding, self.long)
        return self._backward(out.index_select(0, self.real))

    def _forward(self, model: OpenBackbone, tokens: Tensor, layout: Packed) -> Tensor:
        level = self.levels[layout.frame_segment]
        return model(tokens, level, self.texts.flatten(0, 1), layout, self.text_layout)

    def _backward(self, out: Tensor, count: int | None = None) -> Tensor:
        (out.square().sum() / (count or len(out))).backward()
        return out.detach()

    def seconds(self, way: str) -> float:
        model = {"pack": self.packed, "loop": self.raw, "padding_": self.padded}[way]
        model.zero_grad()
        begun = time.process_time()
        getattr(self, way)()
        return time.process_time() - begun

    def check(self) -> None:
        """All three compute the same outputs and gradients."""
        outs = [self.pack(), self.loop(), self.padding_()]
        models = [self.packed.raw, self.raw, self.padded.raw]
        for out, model in zip(outs[1:], models[1:], strict=True):
            torch.testing.assert_close(out, outs[0], rtol=1e-4, atol=1e-4)
            pairs = [(p.grad, q.grad) for p, q in zip(model.parameters(), models[0].parameters(), strict=True)]
            error = sum(float((a - b).square().sum()) for a, b in pairs if b is not None)
            assert error < 1e-8 * sum(float(b.square().sum()) for _, b in pairs if b is not None)


def tokens_of(latent: Tensor) -> Tensor:
    """[C,f,h,w] -> [T, C p q]."""
    x = latent.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH))  # [C,f,h,p,w,q]
    return x.permute(1, 2, 4, 0, 3, 5).flatten(3).flatten(0, 2)


def measure(name: str, width: int, depth: int, scale: int, turns: int) -> dict:
    ways = Ways(FAMILIES[name], width, depth, scale)
    ways.check()
    names = ("pack", "loop", "padding_")
    found = {way: [] for way in names}
    for turn in range(turns):
        for way in names if turn % 2 else reversed(names):
            found[way].append(ways.seconds(way))
    return {
        "family": name,
        "width": width,
        "depth": depth,
        "parameters": sum(p.numel() for p in ways.raw.parameters()),
        "tokens": ways.layout.lengths,
        "pack_ms": 1e3 * statistics.median(found["pack"]),
        **{
            f"{way.strip('_')}_over_pack": statistics.median(
                a / b for a, b in zip(found[way], found["pack"], strict=True)
            )
            for way in names[1:]
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 192, 384])
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--scales", type=int, nargs="+", default=[1], help="of rows, columns: 1: 24 to 252 tokens")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--json", type=Path, help="where the figures go")
    args = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    cases = itertools.product(args.families, args.widths, args.scales)
    rows = [measure(name, width, args.depth, scale, args.turns) for name, width, scale in cases]
    if args.json:
        known = {"date": str(date.today()), "torch": torch.__version__, "load_before": load, "rows": rows}
        args.json.write_text(json.dumps(known, indent=1) + "\n")
    print("| family | width x depth | tokens a sample | pack, ms | loop over pack | padding over pack |")
    print("|---|---|---|---|---|---|")
    for r in rows:
        sizes = f"{min(r['tokens'])} to {max(r['tokens'])}, {sum(r['tokens'])} together"
        ratios = f"{r['loop_over_pack']:.2f} | {r['padding_over_pack']:.2f}"
        print(f"| {r['family']} | {r['width']} x {r['depth']} | {sizes} | {r['pack_ms']:.0f} | {ratios} |")


if __name__ == "__main__":
    main()
