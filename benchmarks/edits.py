"""Edits of the demo's held-out clips by each method, whole and within a mask, as folders to score.

    python benchmarks/edits.py runs/demo --out runs/demo/edits [--clips 112]
    python -m latentvid.evaluation edit runs/demo/edits/clips runs/demo/edits/inversion runs/demo/edits/sdedit ... \
        --masks runs/demo/edits/masks --measures latentvid.demo.edits:JUDGED --out runs/demo/edits/scores

Each is to show another digit, drawn by the clip's number. OUT gets clips/ and masks/ (the digit, wider by 4 pixels),
and a folder of edits a method; METHOD-mask has those within the masks.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
import torch.nn.functional as nnf
from torch import Tensor

from latentvid.data.video.reading import read_frames
from latentvid.data.video.writing import write_video
from latentvid.demo.digits import WORDS
from latentvid.demo.scoring import read_labelled
from latentvid.errors import user_errors
from latentvid.pipelines.edits import edit
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Sampling

FRAMES, FPS, CHUNK, WIDER = 17, 8, 8, 4


def ink(clip: Tensor) -> Tensor:
    """bool [F,H,W] of uint8 [F,H,W,3]: where the digit is, and a little around."""
    seen = (clip.float().amax(-1) > 40).float()[:, None]
    return nnf.max_pool2d(seen, 2 * WIDER + 1, stride=1, padding=WIDER)[:, 0] > 0


def with_digit(text: str, old: int, new: int) -> str:
    words = {str(old): str(new), WORDS[old]: WORDS[new]}
    return " ".join(words.get(word, word) for word in text.split(" "))


def save(path: Path, clip: Tensor, text: str | None = None) -> None:
    write_video(path, clip, FPS, crf=0)
    if text is not None:
        path.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--pipeline", type=Path, help="default: RUN/pipeline")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=112)
    parser.add_argument("--methods", nargs="+", default=["inversion", "sdedit", "flow"])
    args = parser.parse_args()
    pipeline = load_pipeline(args.pipeline or args.run / "pipeline", None)
    rows = [(s, label) for s, label in read_labelled(args.run / "data" / "val.jsonl") if s.frames == FRAMES]
    clips = [(read_frames(s.path, 0, FRAMES), label, s.caption) for s, label in rows[: args.clips]]
    rng, sampling = random.Random(0), Sampling(progress=False)
    targets = [with_digit(t, y.digit, rng.choice([d for d in range(10) if d != y.digit])) for _, y, t in clips]
    masks = [ink(clip) for clip, *_ in clips]
    for i, ((clip, _, text), mask) in enumerate(zip(clips, masks, strict=True)):
        save(args.out / "clips" / f"{i:03}.mp4", clip, text)
        save(args.out / "masks" / f"{i:03}.mp4", mask[..., None].expand(-1, -1, -1, 3).byte() * 255)
    for method in args.methods:
        for local in (False, True):
            for first in range(0, len(clips), CHUNK):
                part = slice(first, first + CHUNK)
                made = edit(
                    pipeline,
                    [clip for clip, *_ in clips[part]],
                    [text for *_, text in clips[part]],
                    targets[part],
                    method,
                    masks=masks[part] if local else None,
                    seed=first,
                    sampling=sampling,
                )
                for i, clip in enumerate(made, first):
                    save(args.out / (method + "-mask" * local) / f"{i:03}.mp4", clip, targets[i])
            print(f"{method}{' within masks' * local}: {len(clips)} clips", flush=True)


if __name__ == "__main__":
    with user_errors(), torch.no_grad():
        main()
