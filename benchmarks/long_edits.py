"""Memory of the editing commands by the length of a clip: the same peak for 5 s and for 20 s of 720p with sound.

    python benchmarks/long_edits.py --model PIPELINE [--out DIR] [--seconds 5 20] [--only edit inpaint]

It makes the clips (24 fps, full range, a tone), edits them by `latentvid edit` (SDEdit), and paints them by `latentvid
inpaint`, each in a process of its own, and prints the process's peak of resident memory, and what of the clip is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import torch

from latentvid.data.video.reading import probe
from latentvid.data.video.writing import clip_writer, copies_audio, has_full_range

FPS, HEIGHT, WIDTH, RATE = 24, 720, 1280, 48_000
MEASURED = """
import json, resource, sys
from latentvid.__main__ import main
main()
print(json.dumps({"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def write_tone(path: Path, seconds: float) -> None:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=RATE)
        for start in range(0, int(seconds * RATE), 1024):
            wave = 0.2 * np.sin(2 * np.pi * 440 * np.arange(start, start + 1024) / RATE)
            frame = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = RATE, start
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def write_clip(path: Path, seconds: float) -> None:
    """A disc that goes round over a gradient."""
    tone = path.with_suffix(".m4a")
    write_tone(tone, seconds)
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    ground = np.stack([x / WIDTH * 255, y / HEIGHT * 255, 128 + 0 * x], -1).astype(np.uint8)
    silent = path.with_name(f"silent-{path.name}")
    with clip_writer(silent, HEIGHT, WIDTH, FPS, crf=20, full_range=True) as append:
        for i in range(int(seconds * FPS)):
            angle = 2 * np.pi * i / (4 * FPS)
            inside = (y - HEIGHT * (0.5 + 0.3 * np.sin(angle))) ** 2 + (x - WIDTH * (0.5 + 0.3 * np.cos(angle))) ** 2
            frame = np.where((inside < 100**2)[..., None], np.uint8([230, 40, 40]), ground)
            append(torch.from_numpy(frame[None]))
    with av.open(str(silent)) as video, av.open(str(tone)) as sound, av.open(str(path), "w") as file:
        inputs = [(each, file.add_stream_from_template(each.streams[0])) for each in (video, sound)]
        for source, stream in inputs:
            for packet in source.demux(source.streams[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    file.mux(packet)
    silent.unlink()
    tone.unlink()


def measured(words: list[str]) -> float:
    """Peak MiB of a command."""
    run = subprocess.run([sys.executable, "-c", MEASURED, *words], capture_output=True, text=True, env=os.environ)
    if run.returncode:
        raise SystemExit(f"{' '.join(words)}: {run.stderr[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])["peak_mib"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/long_edits"))
    parser.add_argument("--seconds", type=float, nargs="+", default=[5, 20])
    parser.add_argument("--only", nargs="+", default=["edit", "inpaint"])
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    mask[200:520, 400:880] = 255
    av.VideoFrame.from_ndarray(mask, format="rgb24").to_image().save(args.out / "mask.png")
    more = {
        "edit": ["--method", "sdedit"],
        "inpaint": ["--mask", str(args.out / "mask.png"), "--condition", "replacement"],
    }
    for seconds in args.seconds:
        clip = args.out / f"{seconds:g}s.mp4"
        if not clip.is_file():
            write_clip(clip, seconds)
        for name in args.only:
            made = args.out / f"{name}-{seconds:g}s.mp4"
            common = ["--model", str(args.model), "--clip", str(clip), "--prompt", "a red 7", "--steps", "2"]
            peak = measured([name, *common, *more[name], "--device", "cpu", "--output", str(made)])
            same = probe(made) == probe(clip) and copies_audio(made) == copies_audio(clip)
            kept = same and has_full_range(made) == has_full_range(clip)
            print(
                f"{name:8} {seconds:5g} s: peak {peak:6.0f} MiB; frames, fps, size, sound, range kept: {kept}",
                flush=True,
            )


if __name__ == "__main__":
    main()
