"""Makes a small data set of real footage: shots at low resolution, stills, and manifests split by source.

    python benchmarks/footage.py --clips DIR --out DATA [--height 144] [--held-out NAME ...] [--captions FILE]

DIR is searched for video files; a file is a source. Each is cut at hard changes of scene into shots of at most 97
frames, scaled to the given height, and written nearly losslessly. DATA gets train/ and held_out/ with the shots (of the
held-out sources all), stills/ (every 48th frame of the training sources), and tables. For an autoencoder: train.jsonl,
held_out.jsonl, images.jsonl. For a transformer: dit_train.jsonl (shots and stills), dit_validation.jsonl (every tenth
shot, whose scenes the others know), and prompts.jsonl with its captions. Captions are those of FILE, {"shot":
"bbb-0012", "caption": "..."} a line (footage_captions.jsonl beside this script has those of the sources of
docs/vae.md); `--captions none` writes the source's name instead.
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

from latentvid.data.video.writing import write_video

CHANGE = 0.11  # mean absolute difference of neighbouring thumbnails, of full scale, at which a shot ends
CUT_AT = 144  # pixels high: what is compared, so that a source has the same shots, and captions, at every height
SHORTEST, LONGEST = 17, 97
STILL_EVERY = 48
VALIDATED = 10  # every tenth training shot validates a transformer
PROMPTED = 3  # clips that are made of each of their captions
CAPTIONS = Path(__file__).with_name("footage_captions.jsonl")
HELD_OUT = ("splide-02", "splide-04", "poster-coverr-lofoten-rocks-1576261169444")  # by file name


def shot_of(still: str) -> str:
    """stills/bbb-0012-48.png -> bbb-0012"""
    return Path(still).stem.rpartition("-")[0]


def scaled(frame: av.VideoFrame, height: int) -> np.ndarray:
    """uint8 [H,W,3] of the given height, W even."""
    width = round(frame.width * height / frame.height / 2) * 2
    return frame.to_ndarray(format="rgb24", width=width, height=height, interpolation=Interpolation.AREA)


def shots(path: Path, height: int) -> Iterator[tuple[np.ndarray, float]]:
    """(uint8 [F,H,W,3], fps) of each shot."""
    frames: list[np.ndarray] = []
    before = None
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        fps = float(stream.average_rate)
        for frame in container.decode(stream):
            picture = scaled(frame, height)
            thumbnail = (picture if height == CUT_AT else scaled(frame, CUT_AT))[::8, ::8].mean(axis=2) / 255
            cut = before is not None and np.abs(thumbnail - before).mean() > CHANGE
            before = thumbnail
            if cut or len(frames) == LONGEST:
                if len(frames) >= SHORTEST:
                    yield np.stack(frames), fps
                frames = []
            frames.append(picture)
    if len(frames) >= SHORTEST:
        yield np.stack(frames), fps


def read_captions(path: Path) -> dict[str, str]:
    """The caption of each shot, by the shot's name."""
    captions: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        sys.exit(f"{path} cannot be read ({error.strerror}): correct --captions, or pass --captions none")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            shot, caption = row["shot"], row["caption"].strip()
        except (ValueError, KeyError, TypeError, AttributeError):
            sys.exit(f'{path}, line {number}: want {{"shot": "NAME", "caption": "TEXT"}}, got {line[:80]!r}')
        if shot in captions or not caption:
            sys.exit(f"{path}, line {number}: shot {shot} {'comes twice' if shot in captions else 'has no text'}")
        captions[shot] = caption
    return captions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True, help="folder of video files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--height", type=int, default=144, help="pixels of the shots (default 144)")
    parser.add_argument("--held-out", nargs="*", default=HELD_OUT, help="sources that are not trained on, by name")
    parser.add_argument(
        "--captions", type=Path, default=CAPTIONS, help="captions by shot, or none (default: beside this)"
    )
    args = parser.parse_args()
    captions = None if str(args.captions) == "none" else read_captions(args.captions)
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
            if captions is not None and name not in captions:
                sys.exit(f"{args.captions} has no caption of shot {name}: add it, or pass --captions none")
            caption = path.stem if captions is None else captions.pop(name)
            tensor = torch.from_numpy(frames)
            write_video(args.out / split / f"{name}.mp4", tensor, fps, crf=6)
            rows[split].append({"path": f"{split}/{name}.mp4", "caption": caption})
            count += len(frames)
            if split == "held_out":
                continue
            for i in range(0, len(frames), STILL_EVERY):
                write_video(args.out / "stills" / f"{name}-{i:02d}.png", tensor[i : i + 1], 1.0)
                rows["images"].append({"path": f"stills/{name}-{i:02d}.png", "caption": caption})
        unused = sorted(shot for shot in captions or () if shot.rpartition("-")[0] == path.stem)
        if unused:  # then the others belong to another cut, too
            sys.exit(
                f"{path} has no shot {', '.join(unused)}, but {args.captions} has: write the captions of this file"
            )
        print(f"{path.stem}: {count} frames, {split}", flush=True)
    rows["dit_validation"] = rows["train"][VALIDATED // 2 :: VALIDATED]
    apart = {Path(row["path"]).stem for row in rows["dit_validation"]}
    rows["dit_train"] = [
        row for row in rows["train"] + rows["images"] if not {Path(row["path"]).stem, shot_of(row["path"])} & apart
    ]
    rows["prompts"] = [{"prompt": row["caption"]} for row in rows["dit_validation"] for _ in range(PROMPTED)]
    for name, lines in rows.items():
        (args.out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
