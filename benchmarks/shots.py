"""How well shots are cut: cuts that a detector finds in a film against a list of its cuts that people looked at.

    python benchmarks/shots.py FILM benchmarks/shots_bbb.json
    python benchmarks/shots.py CAMERA.mp4 benchmarks/shots_camera.json --compose FOLDER

The list says the frames that begin a shot, and spans of frames of gradual changes (dissolves, fades), where a cut
counts neither for nor against. A found cut is right within `--within` frames of a listed one, which counts once.

A list with `pieces` ([file, first frame, frames]) is of a film that is put together of takes of a folder: --compose
writes it first, 320 x 180. Each cut leads from one file to another, so that where cuts are is known.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from latentvid.curation.probing import cut, probed
from latentvid.curation.settings import Shots
from latentvid.data.transforms import fit
from latentvid.data.video.reading import read_frames
from latentvid.data.video.writing import clip_writer

SIZE = (180, 320)  # of composed films


def score(found: Sequence[int], listed: Sequence[int], gradual: Sequence[Sequence[int]], within: int) -> dict:
    """Precision, recall and F1, with the cuts that were missed and those that are none."""
    left, wrong = sorted(listed), []
    for number in sorted(found):
        near = [each for each in left if abs(each - number) <= within]
        if near:
            left.remove(min(near, key=lambda each: abs(each - number)))
        elif not any(begin <= number <= end for begin, end in gradual):
            wrong.append(number)
    right = len(listed) - len(left)
    precision, recall = right / max(1, right + len(wrong)), right / max(1, len(listed))
    f1 = 2 * precision * recall / max(1e-9, precision + recall)
    return {"precision": precision, "recall": recall, "f1": f1, "missed": left, "wrong": wrong}


def compose(folder: Path, pieces: Sequence[tuple[str, int, int]], fps: float, out: Path) -> None:
    """Writes the pieces one after the other."""
    with clip_writer(out, *SIZE, fps, crf=18) as write:
        for name, first, count in pieces:
            write(fit(read_frames(folder / name, first, count), *SIZE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("film")
    parser.add_argument("listed", help="JSON with `cuts` and `gradual`, frames of the film")
    parser.add_argument("--detectors", nargs="+", default=["adaptive", "content"])
    parser.add_argument("--within", type=int, default=1, help="frames (default 1)")
    parser.add_argument("--compose", type=Path, metavar="FOLDER", help="write the film first, of takes of this folder")
    args = parser.parse_args()
    with open(args.listed, encoding="utf-8") as file:
        listed = json.load(file)
    if args.compose is not None:
        compose(args.compose, listed["pieces"], listed["fps"], Path(args.film))
    row = probed({"file": args.film, "source": args.film})
    if row["frames"] != listed["frames"]:
        parser.error(f"{args.film} has {row['frames']} frames, the list is of a film of {listed['frames']}")
    for detector in args.detectors:
        begun = time.process_time()
        cuts = cut(row, Shots(detector=detector))["cuts"]
        found = score(cuts, listed["cuts"], listed["gradual"], args.within)
        print(
            json.dumps(
                {"detector": detector, "found": len(cuts), "cpu_s": round(time.process_time() - begun, 1), **found}
            )
        )


if __name__ == "__main__":
    main()
