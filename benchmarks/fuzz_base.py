"""The small valid inputs that fuzz.py spoils: clips, encoders, a cache, a run of each kind, pipelines. Some seconds."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import av
import torch
import yaml
from fuzz_draw import png_of
from fuzz_run import fork, run_program
from PIL import Image
from transformers import AutoTokenizer, T5EncoderModel

from latentvid.data.video.writing import write_video
from latentvid.demo.digits import prompts, write_dataset
from latentvid.demo.text_encoder import build_encoder, build_tokenizer
from latentvid.diffusion.scheduler import LatentVideoScheduler
from latentvid.models.autoencoder import CausalVideoAutoencoder
from latentvid.models.transformer import VideoDiT
from latentvid.pipelines.latent_video import LatentVideoPipeline

SIDE, FRAMES = 32, 9
GIVEN = ["plain", "first", "prefix", "ends", "random"]
TINY_DIT = {"patch": 2, "width": 32, "depth": 1, "heads": 2, "mlp_ratio": 2.0, "rope_theta": 100.0}
TINY_VAE = {"latent_channels": 4, "widths": [8, 8, 8], "kernels": "factorised"}


def build(base: Path) -> None:
    """Writes them all into `base`, the runs in processes of their own: a fork wants a parent without threads."""
    base.mkdir(parents=True)
    make_clips(base / "clips")
    shutil.copytree(base / "clips", base / "others")
    make_encoders(base)
    rows = [f"{name}.{kind}" for name, kind in CLIPS]
    table = [{"path": f"clips/{row}", "caption": f"a red {i} moves up"} for i, row in enumerate(rows)]
    (base / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    captions = [{"file": row["path"].split("/")[1], "caption": row["caption"]} for row in table]
    (base / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in captions))
    _run(base, "vae/encode_latents.py", *encoding(base, base / "latents"))
    _configurations(base)
    _run(base, "train/train_dit.py", base / "dit.yaml", "--run.dir=" + str(base / "dit_run"), "--train.steps=2",
         "--validation.every=2")  # fmt: skip
    _run(base, "vae/train_vae.py", base / "vae.yaml", "--run.dir=" + str(base / "vae_run"), "--train.steps=2")
    words = [base / "clips", "--metrics", "flicker", "--resamples", "0", "--frames", "5", "--out", base / "scores"]
    _run(base, "-m latentvid.evaluation", *words)
    write_dataset(base / "digits", train=8, val=2)
    shutil.copy(base / "digits/train.jsonl", base / "labels.jsonl")
    make_pipelines(base)


def encoding(base: Path, out: object, manifest: Path | None = None, vae: Path | None = None) -> list[str]:
    """The arguments of vae/encode_latents.py."""
    words = ["--manifest", str(manifest or base / "train.jsonl"), "--vae", str(vae or base / "vae")]
    return [*words, "--text-encoder", str(base / "t5"), "--out", str(out), "--max-frames", str(FRAMES)]


CLIPS = (("one", "mp4"), ("two", "gif"), ("three", "png"), ("four", "webp"), ("five", "jpg"), ("six", "mkv"))


def make_clips(folder: Path) -> None:
    """A moving square in each container, with its caption beside it; `huge.png` is for cases of their own."""
    folder.mkdir()
    frames = torch.zeros(FRAMES, SIDE, SIDE, 3, dtype=torch.uint8)
    for i in range(FRAMES):
        frames[i, 4 : 4 + 8, i : i + 12] = 40 * (i % 5) + 60
    write_video(folder / "one.mp4", frames, 8)
    write_video(folder / "two.gif", frames, 8)
    write_video(folder / "three.png", frames[:1], 8)
    Image.fromarray(frames[1].numpy()).save(folder / "four.webp")
    Image.fromarray(frames[2].numpy()).save(folder / "five.jpg")
    _as_mkv(folder / "one.mp4", folder / "six.mkv")
    for name, _ in CLIPS:
        (folder / f"{name}.txt").write_text("a red 7 moves up")
    Image.new("L", (SIDE, SIDE), 255).save(folder.parent / "mask.png")
    (folder.parent / "huge.png").write_bytes(png_of(13_000, 13_000, 13_000))
    (folder.parent / "liar.png").write_bytes(png_of(2**31 - 1, 2**31 - 1, 10))


def _as_mkv(source: Path, target: Path) -> None:
    with av.open(str(source)) as given, av.open(str(target), "w") as made:
        stream = made.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                made.mux(packet)


def make_encoders(base: Path) -> None:
    """t5 and vae, untrained."""
    tokenizer = build_tokenizer([text for _, text in prompts(100, heldout=False, seed=0)], vocab_size=400)
    tokenizer.model_max_length = 24
    build_encoder(len(tokenizer), seed=0, width=16, layers=1).save_pretrained(base / "t5")
    tokenizer.save_pretrained(base / "t5")
    torch.manual_seed(0)
    statistics = {"latents_mean": (0.1, 0.0, -0.1, 0.2), "latents_std": (1.0, 0.8, 1.2, 0.9)}
    CausalVideoAutoencoder(latent_channels=4, widths=(8, 8, 8), **statistics).save_pretrained(base / "vae")


def _configurations(base: Path) -> None:
    """dit.yaml and vae.yaml: each trains a step in a moment."""
    common = {
        "optim": {"lr": 1e-3, "warmup": 1, "schedule": "constant"},
        "train": {"steps": 1, "mixed_precision": "no", "ema": 0.9},
        "checkpoint": {"every": 1, "keep_last": 5},
        "log": {"trackers": []},
    }
    dit = common | {
        "run": {"dir": "run"},
        "vae": str(base / "vae"),
        "text_encoder": str(base / "t5"),
        "data": {"latents": str(base / "latents"), "max_frames": FRAMES, "tokens_per_pack": 128},
        "model": TINY_DIT,
        "samples": {"frames": 5, "height": SIDE, "width": SIDE, "steps": 1, "prompts": ["a red 7"]},
        "validation": {"latents": str(base / "latents"), "samples": 2, "bins": 2},
    }
    vae = common | {
        "run": {"dir": "run"},
        "data": {"manifest": str(base / "train.jsonl"), "max_frames": 5, "tokens_per_pack": 400},
        "model": TINY_VAE,
        "validation": {"manifest": str(base / "train.jsonl"), "samples": 2},
        "statistics_samples": 2,
    }
    (base / "dit.yaml").write_text(yaml.safe_dump(dit))
    (base / "vae.yaml").write_text(yaml.safe_dump(vae))


def make_pipelines(base: Path) -> None:
    """`pipeline`: of 5 frames of 32x32, with random weights, trained with given frames as it says."""
    torch.manual_seed(0)
    transformer = VideoDiT(latent_channels=4, width=32, depth=1, heads=2, text_width=16, rope_theta=100.0)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    parts = {
        "vae": CausalVideoAutoencoder.from_pretrained(base / "vae"),
        "transformer": transformer,
        "scheduler": LatentVideoScheduler(),
        "text_encoder": T5EncoderModel.from_pretrained(base / "t5"),
        "tokenizer": AutoTokenizer.from_pretrained(base / "t5"),
    }
    sizes = {"frames": 5, "height": SIDE, "width": SIDE, "steps": 1, "given": GIVEN}
    LatentVideoPipeline(**parts, **sizes).save_pretrained(base / "pipeline")


def _run(base: Path, program: str, *arguments: object) -> None:
    log = base / "log"
    shutil.rmtree(log, ignore_errors=True)
    log.mkdir()
    pid = fork(lambda: run_program(program, [str(word) for word in arguments]), log)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError(f"{program} failed on what is right:\n{(log / 'stderr').read_text()[-3000:]}")
