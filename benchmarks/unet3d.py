"""The 3D U-Net beside the transformer on the demo's digits: equal parameters, equal CPU-seconds, one recipe.

    python benchmarks/unet3d.py --demo runs/demo --out runs/unet3d [--weights WEIGHTS]

Both networks learn the demo's latents by configs/dit/demo.yaml, with the same noise, target and samples a pack. The
U-Net has two levels, whose channels are those that come nearest to the transformer's parameters (within 5 %).
- A step's CPU-seconds are measured by short runs of each, the first third left out. The transformer has --steps, the
  U-Net as many as these seconds give.
- Each has of --rates the learning rate with the smallest held-out loss after --trial of its steps, on the first seed.
- For each seed: the held-out loss; clips for the captions of held-out clips, and for pairs of digit and direction that
  training never showed, by the demo's judge; and how far the first are from the held-out clips themselves. That is a
  Frechet distance of equally many clips: FVD where --weights holds an I3D network, and always of two things that the
  judge sees: `look`, the features of its network, mean over the frames, and `path`, where the digit is in five frames.
  Beside them the distances between two halves of the held-out clips, which are larger for being of half as many.
OUT/unet3d.json has all figures; what is there already is not made again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as nnf
from looks import held, run
from torch import Tensor

from latentvid.config.yaml_files import read_yaml
from latentvid.data.transforms import to_uint8
from latentvid.demo.digits import SIZES, Label, prompts
from latentvid.demo.judge import Judge, crop, look, score
from latentvid.demo.scoring import FRAMES, read_labelled, video
from latentvid.evaluation.metrics import open_metrics
from latentvid.evaluation.rows import Clip
from latentvid.evaluation.sets.scores import FrechetScore
from latentvid.limits import number
from latentvid.models.kinds import KINDS
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Sampling
from latentvid.training.monitor.metrics import read_metrics
from latentvid.weights import read_object

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs/dit/demo.yaml"
CHUNK = 20  # clips that are sampled together
PLACES = 5  # frames whose place of the digit is looked at
GROUPS = HEADS = 8  # of the U-Net; both divide the channels of each level
WITHIN = 0.05  # how far the parameters may be apart, as a share
Rows = list[Tensor]  # of each clip [n,D]


# --- the networks ----------------------------------------------------------------------------------------------------


def parameters(kind: str, arguments: dict) -> int:
    """Of a network with these arguments of its constructor; nothing is computed."""
    with torch.device("meta"):
        network = KINDS[kind].cls(**KINDS[kind].filled(arguments))
    return sum(p.numel() for p in network.parameters())


def unet_like(transformer: int, channels: int, text: int) -> dict:
    """The section `model` of a 3D U-Net of two levels, the second nearly twice as wide as the first, with about so many
    parameters. channels: of the latents. text: width of its states."""
    told = KINDS["unet3d"].told(channels, text, 1)
    found = []
    for first in range(GROUPS, 40 * GROUPS, GROUPS):
        for second in range(2 * first - 2 * GROUPS, 2 * first + 3 * GROUPS, GROUPS):
            if second < first:
                continue
            model = {"block_out_channels": [first, second], "layers_per_block": 1}
            model |= {"norm_num_groups": GROUPS, "attention_head_dim": HEADS}
            off = abs(parameters("unet3d", {**model, **told}) / transformer - 1)
            found.append((off, abs(second - 2 * first), model))
        if found[-1][0] > 1 and parameters("unet3d", {**found[-1][2], **told}) > transformer:
            break  # wider ones are larger still
    off, _, model = min(found, key=lambda each: each[:2])
    if off > WITHIN:
        raise ValueError(f"no U-Net of two levels has {transformer:,} parameters within {WITHIN:.0%}")
    return {"kind": "unet3d", **model}


def networks(demo: Path) -> dict[str, dict]:
    """Of each way its section `model`, its parameters, and its tokens over the transformer's for the same samples."""
    channels = read_object(demo / "pipeline/vae/config.json")["latent_channels"]
    text = read_object(demo / "t5/config.json")["d_model"]
    dit = read_yaml(CONFIG)["model"]
    size = parameters("dit", {**dit, **KINDS["dit"].told(channels, text, 4)})
    unet = unet_like(size, channels, text)
    plain = {key: value for key, value in unet.items() if key != "kind"}
    own = parameters("unet3d", {**plain, **KINDS["unet3d"].told(channels, text, 4)})
    return {
        "transformer": {"model": dit, "parameters": size, "tokens": 1},
        "3D U-Net": {"model": unet, "parameters": own, "tokens": dit["patch"] ** 2},
    }


# --- training --------------------------------------------------------------------------------------------------------


def train(args: argparse.Namespace, way: dict, folder: Path, seed: int, steps: int, rate: float, measure: bool) -> dict:
    """A run of the demo's recipe, gone on with where it was stopped. Warm-up and moving average take the share of its
    steps that they take of the demo's."""
    demo, recipe, model = args.demo, read_yaml(CONFIG), json.dumps(way["model"])
    share, budget = steps / recipe["train"]["steps"], recipe["data"]["tokens_per_pack"]
    ema = max(0.0, 1.0 - (1.0 - recipe["train"]["ema"]) / share)
    held_out = [
        f"--validation.manifest={demo / 'data/val.jsonl'}",
        f"--validation.every={steps}",
        "--validation.samples=160",
    ]
    run(
        *("train/train_dit.py", CONFIG, f"--run.dir={folder}", f"--run.seed={seed}", f"--model={model}"),
        *(f"--vae={demo / 'pipeline/vae'}", f"--text_encoder={demo / 't5'}", f"--data.latents={demo / 'latents'}"),
        *(f"--data.tokens_per_pack={budget * way['tokens']}", f"--optim.lr={rate}", "--data.workers=0"),
        *(f"--train.steps={steps}", f"--checkpoint.every={steps}", "--samples.every=0", "--log.trackers=[]"),
        *(f"--optim.warmup={round(share * recipe['optim']['warmup'])}", f"--train.ema={ema}"),
        f"--validation.every={steps * measure}",
        *(held_out if measure else ("--validation.manifest=null",)),
        *args.options,
    )
    lines = read_metrics(folder)
    seconds = [line["cpu_s"] for line in lines]
    found = {"steps": steps, "lr": rate, "cpu_s": sum(seconds), "samples": sum(line["samples"] for line in lines)}
    found["cpu_s_a_step"] = statistics.median(seconds[len(seconds) // 3 :])
    if measure:
        rows = [row for row in read_metrics(folder, "validation.jsonl") if row["weights"] == "ema"]
        found["loss"] = rows[-1]["loss"]
    return found


# --- distances -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def looks_of(clip: Tensor, judge: Judge) -> Tensor:
    """What the last convolution of the judge's network makes of a clip uint8 [F,H,W,3], mean over places and frames:
    [1,64]."""
    sight = look(clip.float())
    x = crop(sight.ink, sight.centre)[:, None]
    for layer, (conv, norm) in enumerate(zip(judge.net.convs, judge.net.norms, strict=True)):
        x = nnf.relu(norm(conv(x if layer == 0 else nnf.max_pool2d(x, 2))))
    return x.mean(dim=(0, 2, 3))[None]


def path_of(clip: Tensor) -> Tensor:
    """Where the digit is in some frames of a clip uint8 [F,H,W,3], in pixels from the middle of the picture: [1,10]."""
    frames = torch.linspace(0, len(clip) - 1, PLACES).round().long()
    middle = (torch.tensor(clip.shape[1:3]) - 1) / 2
    return (look(clip.float()).centre[frames] - middle).reshape(1, -1)


def features(judge: Judge, weights: Path | None) -> dict[str, Callable[[Tensor], Tensor]]:
    """By the name of the distance, what makes a clip's row."""
    found = {"look": lambda clip: looks_of(clip, judge), "path": path_of}
    if weights is not None:
        i3d = open_metrics(["fvd"], weights, torch.device("cpu")).extractors["i3d"]
        found["fvd"] = lambda clip: i3d(Clip(clip, name="a clip"))
    return found


def distances(clips: Sequence[Tensor], real: Sequence[Tensor], of: dict[str, Callable]) -> dict[str, float]:
    """The Frechet distance of equally many clips by each of these features."""
    return {name: FrechetScore(name, name)([*map(make, clips)], [*map(make, real)]) for name, make in of.items()}


# --- what is scored --------------------------------------------------------------------------------------------------


def sampled(pipeline: LatentVideoPipeline, texts: list[str], sizes: list[tuple[int, int]], seed: int) -> list[Tensor]:
    """A clip a prompt; the noise is the same for both networks where their tokens are in the same order."""
    clips = []
    for start in range(0, len(texts), CHUNK):
        heights, widths = zip(*sizes[start : start + CHUNK], strict=True)
        words = {"num_frames": FRAMES, "height": heights, "width": widths, "seed": seed + start}
        clips += pipeline(
            texts[start : start + CHUNK], **words, sampling=Sampling(progress=False), output_type="uint8"
        ).frames
    return clips


def real_clips(demo: Path, most: int) -> tuple[list[Tensor], list[Label], list[str]]:
    """Held-out clips of the demo's length, with what they show and their captions."""
    chosen = [each for each in read_labelled(demo / "data/val.jsonl") if each[0].frames == FRAMES][:most]
    if len(chosen) < 4:
        raise SystemExit(
            f"{demo / 'data/val.jsonl'} has {len(chosen)} clips of {FRAMES} frames: distances need 4 or more"
        )
    clips = [to_uint8(video(sample)) for sample, _ in chosen]
    captions = [c if isinstance(c, str) else c[0] for c in (sample.caption for sample, _ in chosen)]
    return clips, [label for _, label in chosen], captions


def scored(args: argparse.Namespace, folder: Path, seed: int, judge: Judge) -> dict:
    """Judge and distances of a finished run."""
    pipeline = load_pipeline(folder / "pipeline", "cpu")
    real, labels, texts = real_clips(args.demo, args.clips)
    clips = sampled(pipeline, texts, [tuple(clip.shape[1:3]) for clip in real], 10**5 * seed)
    found = {"seen": score(clips, labels, judge)}
    found["distance"] = distances(clips, real, features(judge, args.weights))
    asked = prompts(args.heldout, heldout=True, seed=900 + seed)
    sizes = [SIZES[i % len(SIZES)] for i in range(len(asked))]
    clips = sampled(pipeline, [text for _, text in asked], sizes, 10**5 * seed + 50_000)
    found["new pairs"] = score(clips, [label for label, _ in asked], judge)
    return found


def floor_of(args: argparse.Namespace, judge: Judge) -> dict:
    """Of the held-out clips: what the judge finds right, and how far one half of them is from the other."""
    real, labels, _ = real_clips(args.demo, args.clips)
    half = distances(real[::2], real[1::2][: len(real[::2])], features(judge, args.weights))
    return {"seen": score(real, labels, judge), "half": half, "clips": len(real)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="a finished demo")
    parser.add_argument("--out", type=Path, default=Path("runs/unet3d"))
    parser.add_argument("--weights", type=Path, help="folder of the scores' networks, for FVD")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=number("train.steps"), default=1400, help="of the transformer")
    parser.add_argument("--pilot", type=number("train.steps"), default=24, help="steps that tell what one costs")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3], help="learning rates to choose from")
    parser.add_argument("--trial", type=float, default=0.25, help="share of the steps after which they are compared")
    parser.add_argument("--clips", type=number("heldout"), default=220, help="held-out clips whose captions are asked")
    parser.add_argument("--heldout", type=number("heldout"), default=140, help="prompts of pairs never shown")
    parser.add_argument("options", nargs="*", help="after `--`: further ones of train_dit.py, for both")
    args = parser.parse_args()
    args.demo, out = args.demo.resolve(), args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    judge, ways = Judge.load(), held(out / "networks.json", lambda: networks(args.demo))
    found = {"networks": ways, "real": held(out / "real.json", lambda: floor_of(args, judge)), "seeds": {}}

    def made(name: str, folder: str, seed: int, steps: int, rate: float, measure: bool = True) -> dict:
        place = out / f"{name} {folder}".replace(" ", "_")
        return held(
            out / f"{place.name}.json", lambda: train(args, ways[name], place, seed, steps, rate, measure=measure)
        )

    first, steps, rates = args.seeds[0], {}, {}
    pilots = {name: made(name, "pilot", first, args.pilot, args.rates[0], measure=False) for name in ways}
    budget = args.steps * pilots["transformer"]["cpu_s_a_step"]
    for name, pilot in pilots.items():
        steps[name] = max(2, round(budget / pilot["cpu_s_a_step"]))
        few = max(2, round(args.trial * steps[name]))
        tried = {rate: made(name, f"rate {rate:g}", first, few, rate)["loss"] for rate in args.rates}
        rates[name] = min(tried, key=tried.get) if len(tried) > 1 else args.rates[0]
        found["networks"][name] |= {"cpu_s_a_step": pilot["cpu_s_a_step"], "tried": tried, "lr": rates[name]}
    for seed in args.seeds:
        of_seed = found["seeds"][seed] = {}
        for name in ways:
            trained = made(name, f"seed {seed}", seed, steps[name], rates[name])
            folder = out / f"{name} seed {seed}".replace(" ", "_")
            scores = held(
                out / f"scores {name} {seed}.json", lambda folder=folder, seed=seed: scored(args, folder, seed, judge)
            )
            of_seed[name] = {**trained, **scores}
        print(seed, json.dumps(of_seed), flush=True)
    settings = {key: value for key, value in vars(args).items() if key not in ("demo", "out", "weights", "options")}
    (out / "unet3d.json").write_text(json.dumps({"settings": settings, **found}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
