"""What a latent cache makes again when its data change, and what it takes on disk.

    python benchmarks/cache_growth.py [--clips 1000] [--folder F]

Encodes so many tiny clips; then appends one, changes one caption, replaces a file under its name, takes one clip out,
and moves everything to another folder. Of each: windows through the VAE, captions through the text encoder, seconds.
Then one clip of 15 windows with a text of T5-XXL's size (120 tokens of 4,096): bytes now, and with the text stored for
each window, as it was before.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

import latentvid.training.stages.dit.encode as encode
from latentvid.data.cache.latents import LatentCache
from latentvid.data.cache.shards import write_shard
from latentvid.data.cache.writing import Row, cache_key, write_index
from latentvid.data.video.writing import write_video
from latentvid.demo.digits import prompts
from latentvid.demo.text_encoder import build_encoder, build_tokenizer
from latentvid.models.autoencoder import CausalVideoAutoencoder

FRAMES, SIDE, CHANNELS = 5, 32, 4
WIDTH, WORDS, WINDOWS = 4096, 120, 15


@dataclass
class Made:
    """What went through the networks."""

    windows: int = 0
    captions: list[str] = field(default_factory=list)


@contextmanager
def counted():
    made, windows, texts = Made(), encode.Encoder._encode, encode.Encoder.texts

    def noted(self, group):
        made.windows += len(group)
        return windows(self, group)

    def read(self, captions):
        made.captions += captions
        return texts(self, captions)

    encode.Encoder._encode, encode.Encoder.texts = noted, read
    try:
        yield made
    finally:
        encode.Encoder._encode, encode.Encoder.texts = windows, texts


def clip(path: Path, number: int) -> None:
    frames = torch.randint(256, (1, 4, 4, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
    frames = frames.expand(FRAMES, -1, -1, -1).repeat_interleave(SIDE // 4, 1).repeat_interleave(SIDE // 4, 2)
    write_video(path, frames.contiguous(), 8.0)


def networks(folder: Path) -> None:
    tokenizer = build_tokenizer([text for _, text in prompts(100, heldout=False, seed=0)], vocab_size=400)
    build_encoder(len(tokenizer), seed=0, width=16, layers=1).save_pretrained(folder / "t5")
    tokenizer.save_pretrained(folder / "t5")
    statistics = {"latents_mean": [0.0] * CHANNELS, "latents_std": [1.0] * CHANNELS}
    CausalVideoAutoencoder(latent_channels=CHANNELS, patch=2, widths=(8, 8, 8), **statistics).save_pretrained(
        folder / "vae"
    )


def save(folder: Path, rows: list[dict]) -> Path:
    table = folder / "clips.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return table


def grow(root: Path, clips: int) -> None:
    folder = root / "set"
    folder.mkdir()
    networks(root)
    rows = []
    for number in range(clips + 1):
        clip(folder / f"{number}.mp4", number)
        size = {"frames": FRAMES, "fps": 8.0, "height": SIDE, "width": SIDE}
        rows.append(
            {"path": f"{number}.mp4", "caption": f"a red {number % 10} moves {'up' if number % 2 else 'down'}"} | size
        )
    config = encode.EncodeConfig(
        manifest=save(folder, rows[:clips]),
        vae=root / "vae",
        text_encoder=str(root / "t5"),
        out=folder / "latents",
        max_frames=FRAMES,
        max_area=None,
        patch=2,
        batch=16,
        mixed_precision="no",
    )

    def run(what: str) -> None:
        begun = time.monotonic()
        with counted() as made:
            encode.encode_manifest(config)
        seconds, cache = time.monotonic() - begun, LatentCache(config.out)
        cache.check_clips()
        print(f"{what:<36} {made.windows:>8} {len(made.captions):>9} {seconds:>8.1f} {len(cache):>8}", flush=True)

    print(f"{'':<36} {'windows':>8} {'captions':>9} {'seconds':>8} {'entries':>8}")
    run(f"{clips} clips")
    run("nothing changed")
    save(folder, rows)
    run("one clip appended")
    rows[3]["caption"] = "a green 3 moves left"
    save(folder, rows)
    run("one caption changed")
    clip(folder / "5.mp4", 10**6)
    run("a file replaced under its name")
    del rows[7]
    save(folder, rows)
    run("one clip taken out of the middle")
    folder = folder.rename(root / "moved")
    config = replace(config, manifest=folder / "clips.jsonl", out=folder / "latents")
    run("everything moved")
    config = replace(config, clean=True)
    run("cleaned")


def sizes(root: Path) -> None:
    """Of a clip of many windows."""
    key, text = cache_key("vae", "t5", {}), torch.randn(WORDS, WIDTH)
    bytes_of = {}
    for name, texts in (("once", ["text"]), ("a window", [f"text{i}" for i in range(WINDOWS)])):
        folder = root / name
        folder.mkdir()
        latents = {f"latent{i}": (torch.randn(16, 5, 32, 32), torch.rand(16, 5, 32, 32)) for i in range(WINDOWS)}
        rows = [Row(i, f"latent{i}", (texts[i % len(texts)],), (5, 32, 32)) for i in range(WINDOWS)]
        in_latents = dict.fromkeys(latents, write_shard(folder, key, latents=latents))
        stored = {"null": torch.zeros(1, WIDTH)} | dict.fromkeys(texts, text)
        in_texts = dict.fromkeys(stored, write_shard(folder, key, texts=stored))
        more = {"channels": 16, "text_width": WIDTH, "fps": 24.0, "dropped": []}
        write_index(folder, key, rows, in_latents, in_texts, "null", **more)
        bytes_of[name] = sum(path.stat().st_size for path in folder.glob("texts-*")), LatentCache(folder)._bytes
    print(f"\na clip of {WINDOWS} windows, a text of {WORDS} x {WIDTH:,}, latents of 16 x 5 x 32 x 32: bytes")
    print(f"{'text stored':<12} {'texts':>12} {'in all':>12}")
    for name, (of_texts, in_all) in bytes_of.items():
        print(f"{name:<12} {of_texts:>12,} {in_all:>12,}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="for the files (default: one that is removed again)")
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        sizes(root)
        grow(root, args.clips)
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
