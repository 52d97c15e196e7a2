"""A clip from a prompt, end to end: our pipeline beside diffusers' pipelines of equal size, random weights.

    python benchmarks/sampling.py                                   # ours, Wan 2.1 and CogVideoX, at 4x8x8
    python benchmarks/sampling.py --models "latentvid 8x32x32" LTX --side 512
    python benchmarks/sampling.py --compile                         # and the same with compiled blocks, as more rows

All have transformers of one width, depth and number of heads, a T5 encoder of one size (8 layers, width 512), the same
prompt and negative prompt, as many Euler (CogVideoX: DDIM) steps, guided; each its own VAE at its published structure,
ours as in configs/vae/. Peers run as diffusers documents them: bf16 weights, and prompts padded to their pipeline's
default (512, 226 and 128 tokens), or not padded with --fit-text. Ours: bf16 weights under autocast, as
`Sampling.precision` says. The VAEs' weights lie channels last where that is faster for them.

After a clip of each to warm up they make clips in turns; ratios are of one turn, medians of turns are shown. "text" and
"decode" are the forward pass of the encoder and the decoder, "denoising" all the rest. GFLOP are counted by torch.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import yaml
from dit_peers import PATCH, TEXT_WIDTH, Shape, cogvideox, wan
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from training_step import compile_blocks
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel
from vae_cost import CONFIGS, PEERS

from latentvid.demo.digits import prompts
from latentvid.demo.text_encoder import build_tokenizer
from latentvid.diffusion.guidance import Guidance
from latentvid.diffusion.scheduler import LatentVideoScheduler
from latentvid.models.interchange import build_vae
from latentvid.models.transformer import VideoDiT
from latentvid.packing import token_grid
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.sampling import Sampling

PROMPT = "a slow shot of a harbour at dawn: small boats rock on grey water while a man in a red coat mends his nets"
NEGATIVE = "blurred, low quality, still picture, text"
T5 = {"d_model": TEXT_WIDTH, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 6, "dropout_rate": 0.0}
T5 |= {"feed_forward_proj": "gated-gelu"}
SCALE = 5.0
DEFAULT = ["latentvid 4x8x8", "Wan 2.1", "CogVideoX"]
STAGES = ("text", "denoising", "decode", "total")


def tokenizer() -> PreTrainedTokenizerFast:
    found = build_tokenizer([PROMPT, NEGATIVE, *(text for _, text in prompts(100, heldout=False, seed=0))])
    found.model_max_length = 512
    return found


class Maker:
    """A pipeline that makes a clip when called; gives what a clock measures of each stage."""

    def __init__(self, pipeline: Any, make: Callable[[], Any], tokens: int, text: int) -> None:
        self.pipeline, self.make, self.tokens, self.text = pipeline, make, tokens, text
        self.clock: Callable[[], float] = time.perf_counter
        self.parts: dict[str, float] = {}
        for stage, module, method in (("text", pipeline.text_encoder, "forward"), ("decode", pipeline.vae, "decode")):
            setattr(module, method, self._measured(stage, getattr(module, method)))

    def _measured(self, stage: str, call: Callable) -> Callable:
        def measured(*args: Any, **kwargs: Any) -> Any:
            start = self.clock()
            result = call(*args, **kwargs)
            self.parts[stage] += self.clock() - start
            return result

        return measured

    def __call__(self, clock: Callable[[], float] = time.perf_counter) -> dict[str, float]:
        self.clock, self.parts = clock, {"text": 0.0, "decode": 0.0}
        start = clock()
        self.make()
        total = clock() - start
        return {"total": total, "denoising": total - sum(self.parts.values())} | self.parts


def disturb(model: nn.Module) -> nn.Module:
    """Noise on what starts at zero."""
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1 and not p.any():
                p.normal_(std=0.02)
    return model.eval().requires_grad_(False)


def ours(args: argparse.Namespace, config: str, patch: int) -> Maker:
    vae = build_vae(yaml.safe_load((CONFIGS / f"{config}.yaml").read_text(encoding="utf-8"))["model"], config)
    vae.set_statistics([0.0] * vae.latent_channels, [1.0] * vae.latent_channels)
    words = tokenizer()
    model = VideoDiT(
        latent_channels=vae.latent_channels,
        patch=patch,
        width=args.width,
        depth=args.depth,
        heads=args.heads,
        text_width=TEXT_WIDTH,
    )
    pipeline = LatentVideoPipeline(
        vae=vae.eval(),
        transformer=disturb(model),
        scheduler=LatentVideoScheduler(),
        text_encoder=T5EncoderModel(T5Config(vocab_size=len(words), **T5)),
        tokenizer=words,
    ).to(args.dtype)
    sampling = Sampling(steps=args.steps, guidance=Guidance(scale=SCALE), precision=args.dtype, progress=False)
    clip = {"num_frames": args.frames, "height": args.side, "width": args.side, "sampling": sampling}
    clip["output_type"] = "uint8"
    grid = token_grid(vae.latent_grid(args.frames, args.side, args.side), patch)
    text = sum(len(words(prompt)["input_ids"]) for prompt in (PROMPT, NEGATIVE))
    return Maker(pipeline, lambda: pipeline(PROMPT, negative_prompt=NEGATIVE, **clip), math.prod(grid), text)


@dataclass(frozen=True)
class Peer:
    """text: tokens that its pipeline pads a prompt to; strides: of its VAE, in time and space."""

    transformer: Callable[[Shape], nn.Module]
    pipeline: type
    encoder: type
    text: int
    strides: tuple[int, int]
    patch: int
    scheduler: type = diffusers.FlowMatchEulerDiscreteScheduler


def ltx(shape: Shape) -> nn.Module:
    return diffusers.LTXVideoTransformer3DModel(
        num_attention_heads=shape.heads,
        attention_head_dim=shape.head_width,
        cross_attention_dim=shape.width,
        num_layers=shape.depth,
        caption_channels=TEXT_WIDTH,
    )


PIPELINES = {
    "Wan 2.1": Peer(lambda s: wan(s)[0], diffusers.WanPipeline, UMT5EncoderModel, 512, (4, 8), PATCH),
    "CogVideoX": Peer(
        lambda s: cogvideox(s)[0],
        diffusers.CogVideoXPipeline,
        T5EncoderModel,
        226,
        (4, 8),
        PATCH,
        diffusers.CogVideoXDDIMScheduler,
    ),
    "LTX": Peer(ltx, diffusers.LTXPipeline, T5EncoderModel, 128, (8, 32), 1),
}


def theirs(args: argparse.Namespace, name: str) -> Maker:
    peer, (cls, arguments), words = PIPELINES[name], PEERS[name], tokenizer()
    text = len(words(PROMPT)["input_ids"]) if args.fit_text else peer.text
    side = args.side // peer.strides[1]
    grid = token_grid((1 + (args.frames - 1) // peer.strides[0], side, side), peer.patch)
    model = peer.transformer(Shape(args.width, args.heads, args.depth, grid, text))
    config = (T5Config if peer.encoder is T5EncoderModel else UMT5Config)(vocab_size=len(words), **T5)
    pipeline = peer.pipeline(
        tokenizer=words,
        text_encoder=peer.encoder(config).eval(),
        vae=getattr(diffusers, cls)(**arguments).eval(),
        transformer=disturb(model),
        scheduler=peer.scheduler(),
    ).to(args.dtype)
    pipeline.set_progress_bar_config(disable=True)
    clip = {"num_frames": args.frames, "height": args.side, "width": args.side, "num_inference_steps": args.steps}
    clip |= {"guidance_scale": SCALE, "max_sequence_length": text, "output_type": "np"}
    return Maker(pipeline, lambda: pipeline(PROMPT, negative_prompt=NEGATIVE, **clip), math.prod(grid), 2 * text)


OURS = {"latentvid 4x8x8": ("4x8x8", PATCH), "latentvid 8x32x32": ("8x32x32", 1)}


def make(args: argparse.Namespace, name: str, compiled: bool) -> tuple[Maker, dict]:
    """With what a clip of it takes: FLOPs by stage, and seconds of the first one with compiled blocks."""
    torch.manual_seed(0)
    maker = ours(args, *OURS[name]) if name in OURS else theirs(args, name)
    with FlopCounterMode(display=False) as counter:
        flops = maker(counter.get_total_flops)
    row = {"tokens": maker.tokens, "text_tokens": maker.text, "gflop": {k: v / 1e9 for k, v in flops.items()}}
    if compiled:
        compile_blocks(maker.pipeline.transformer)
        row["first_s"] = maker()["total"]
    return maker, row


def compare(args: argparse.Namespace) -> dict[str, dict]:
    makers, rows = {}, {}
    for name in args.models:
        for compiled in (False, True)[: 1 + args.compile]:
            label = f"{name}, compiled" if compiled else name
            makers[label], rows[label] = make(args, name, compiled)
    rounds = []
    for i in range(args.rounds):
        turn = list(makers) if i % 2 == 0 else list(makers)[::-1]
        rounds.append({name: makers[name]() for name in turn})
    first = args.models[0]
    for name, row in rows.items():
        row["seconds"] = {k: statistics.median(r[name][k] for r in rounds) for k in STAGES}
        row["over_first"] = {k: statistics.median(r[name][k] / r[first][k] for r in rounds) for k in STAGES}
        row["rounds"] = [r[name] for r in rounds]
    return rows


def table(rows: dict[str, dict]) -> str:
    first = next(iter(rows))
    lines = [f"| pipeline | tokens | text tokens | TFLOP | {' | '.join(f'{k}, s' for k in STAGES)} | over {first} |"]
    lines.append("|---" * (5 + len(STAGES)) + "|")
    for name, row in rows.items():
        seconds = " | ".join(f"{row['seconds'][k]:.2f}" for k in STAGES)
        sizes = f"{row['tokens']} | {row['text_tokens']} | {row['gflop']['total'] / 1e3:.2f}"
        ratios = ", ".join(f"{k} {row['over_first'][k]:.2f}" for k in ("total", "denoising"))
        lines.append(f"| {name} | {sizes} | {seconds} | {ratios} |")
    return "\n".join(lines)


def main() -> None:
    known = [*OURS, *PIPELINES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", choices=known, default=[known[0], "Wan 2.1", "CogVideoX"], metavar="NAME"
    )
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--fit-text", action="store_true", help="peers get the prompt without padding")
    parser.add_argument("--compile", action="store_true", help="more rows, with compiled blocks")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = {k: v for k, v in vars(args).items() if k != "out"}
    args.dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    rows = compare(args)
    print(table(rows), flush=True)
    for name, row in rows.items():
        if "first_s" in row:
            print(f"{name}: first clip {row['first_s']:.1f} s")
    if args.out:
        args.out.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
