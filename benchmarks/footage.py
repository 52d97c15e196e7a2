"""Makes a small data set of real footage: shots at low resolution, stills, and manifests split by source.

    python benchmarks/footage.py --clips DIR --out DATA [--height 144] [--held-out NAME ...]

DIR is searched for video files; a file is a source. Each is cut at hard changes of scene into shots of at most 97
frames, scaled to the given height, and written nearly losslessly. DATA gets train/ and
held_out/ with the shots (of the held-out sources all), stills/ (every 48th frame of the training sources), and
train.jsonl, held_out.jsonl, images.jsonl.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation
from tqdm import tqdm

from latentvid.data.writing import write_video

CHANGE = 0.11  # mean absolute difference of neighbouring thumbnails, of full scale, at which a shot ends
SHORTEST, LONGEST = 17, 97
STILL_EVERY = 48
HELD_OUT = ("splide-02", "splide-04", "poster-coverr-lofoten-rocks-1576261169444")  # by file name


def shots(path: Path, height: int) -> Iterator[tuple[np.ndarray, float]]:
    """(uint8 [F,H,W,3], fps) of each shot."""
    frames: list[np.ndarray] = []
    before = None
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        fps = float(stream.average_rate)
        width = round(stream.width * height / stream.height / 2) * 2
        for frame in container.decode(stream):
            picture = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation=Interpolation.AREA)
            thumbnail = picture[::8, ::8].mean(axis=2) / 255
            cut = before is not None and np.abs(thumbnail - before).mean() > CHANGE
            before = thumbnail
            if cut or len(frames) == LONGEST:
                if len(frames) >= SHORTEST:
                    yield np.stack(frames), fps
                frames = []
            frames.append(picture)
    if len(frames) >= SHORTEST:
        yield np.stack(frames), fps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True, help="folder of video files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--height", type=int, default=144, help="pixels of the shots (default 144)")
    parser.add_argument("--held-out", nargs="*", default=HELD_OUT, help="sources that are not trained on, by name")
    args = parser.parse_args()
    sources = sorted(args.clips.rglob("*.mp4"))
    unknown = set(args.held_out) - {path.stem for path in sources}
    if unknown:
        sys.exit(f"{args.clips} has no {', '.join(sorted(unknown))}; it has {', '.join(p.stem for p in sources)}")
    rows: dict[str, list[dict]] = {"train": [], "held_out": [], "images": []}
    for path in sources:
        split = "held_out" if path.stem in args.held_out else "train"
        count = 0
        for number, (frames, fps) in enumerate(tqdm(shots(path, args.height), desc=path.stem, unit="shot")):
            name = f"{path.stem}-{number:04d}"
            tensor = torch.from_numpy(frames)
            write_video(args.out / split / f"{name}.mp4", tensor, fps, crf=6)
            rows[split].append({"path": f"{split}/{name}.mp4", "caption": path.stem})
            count += len(frames)
            for i in range(0, len(frames), STILL_EVERY) if split == "train" else ():
                write_video(args.out / "stills" / f"{name}-{i:02d}.png", tensor[i : i + 1], 1.0)
                rows["images"].append({"path": f"stills/{name}-{i:02d}.png", "caption": path.stem})
        print(f"{path.stem}: {count} frames, {split}", flush=True)
    for name, lines in rows.items():
        (args.out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
