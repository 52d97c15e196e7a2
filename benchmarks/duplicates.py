"""How well near-duplicates are found: copies of footage that are re-encoded, scaled, cropped and mirrored.

    python benchmarks/duplicates.py FILM [FILM ...] --out FOLDER

Of each film it makes a copy of each kind, cuts all of them into shots and segments as `latentvid curate` does, and asks
which segments show the same. A segment of a copy is found where it is said to show the same as one of the original at
the same time (recall), and a pair that is said to be the same is right where it is such a one (precision): pairs of two
times of a film are wrong, whatever they show.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from latentvid.curation.hashing import Signature, same_as
from latentvid.curation.measuring import hashed_frames, luma_of, read_hashes, signature
from latentvid.curation.probing import cut, each_frame, fitted_size, probed, segments
from latentvid.curation.settings import Measures, Segments, Shots
from latentvid.data.transforms import fit
from latentvid.data.video.reading import read_chunks
from latentvid.data.video.writing import clip_writer


def scaled(pixels: Tensor) -> Tensor:
    height, width = pixels.shape[1:3]
    return fit(pixels, height * 3 // 5 // 2 * 2, width * 3 // 5 // 2 * 2)


def cropped(top: float = 0, left: float = 0, bottom: float = 0, right: float = 0) -> Callable[[Tensor], Tensor]:
    """Without these shares of its sides."""

    def crop(pixels: Tensor) -> Tensor:
        height, width = pixels.shape[1:3]
        down, across = round(height * top), round(width * left)
        return pixels[:, down : height - round(height * bottom), across : width - round(width * right)]

    return crop


COPIES: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "re-encoded": (35, lambda pixels: pixels),
    "scaled": (23, scaled),
    "cropped-corner": (23, cropped(top=0.05, left=0.05)),  # the middle moves
    "cropped-middle": (23, cropped(0.025, 0.025, 0.025, 0.025)),
    "cropped-all-sides": (23, cropped(0.05, 0.05, 0.05, 0.05)),
    "cropped-one-side": (23, cropped(right=0.05)),
    "mirrored": (23, lambda pixels: pixels.flip(2)),
}


def copy(film: Path, kind: str, out: Path) -> Path:
    place = out / kind / film.name
    if place.is_file():
        return place
    crf, change = COPIES[kind]
    chunks = (change(chunk) for chunk in read_chunks(film, 64, 64))
    first = next(chunks)
    height, width = (side // 2 * 2 for side in first.shape[1:3])
    with clip_writer(place, height, width, probed({"file": str(film), "source": ""})["fps"], crf=crf) as write:
        write(first[:, :height, :width].contiguous())
        for chunk in chunks:
            write(chunk[:, :height, :width].contiguous())
    return place


def hashed(film: Path, kept: Path) -> list[dict]:
    """The segments of a film with their signatures, kept in a file."""
    if kept.is_file():
        return json.loads(kept.read_text())
    row = cut(probed({"file": str(film), "source": film.name}), Shots())
    found, _ = segments(row, Segments())
    wanted = {each["first"] + n: each for each in found for n in hashed_frames(each["count"], row["fps"])}
    pictures: dict[int, list[np.ndarray]] = {}

    def take(number: int, frame: np.ndarray) -> None:
        if number in wanted:
            pictures.setdefault(wanted[number]["first"], []).append(luma_of(frame))

    each_frame(row["file"], 0, row["frames"], take, fitted_size(row["height"], row["width"], Measures().area))
    made = [{**each, "film": film.name, **signature(np.stack(pictures[each["first"]]))} for each in found]
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(made))
    return made


def score(originals: list[dict], copies: list[dict], distance: float, mirror: bool) -> dict:
    every = [*originals, *copies]
    names = [(n >= len(originals), each["film"], each["shot"]) for n, each in enumerate(every)]
    shots = {name: n for n, name in enumerate(dict.fromkeys(names))}
    signatures = []
    for each, name in zip(every, names, strict=True):
        looks, changes = (read_hashes(each[key]) for key in ("looks", "changes"))
        signatures.append(Signature(looks, changes, shots[name]))
    same = same_as(signatures, distance, mirror)

    def right(n: int) -> bool:
        a, b = every[n], every[same[n]]
        return (
            n >= len(originals) > same[n] and a["film"] == b["film"] and a["start"] < b["end"] and b["start"] < a["end"]
        )

    said = [n for n, other in enumerate(same) if other != n]
    good = sum(map(right, said))
    return {
        "distance": distance,
        "copies": len(copies),
        "found": good,
        "recall": good / max(1, len(copies)),
        "said": len(said),
        "precision": good / max(1, len(said)),
        "wrong": [(every[n]["film"], every[n]["start"], every[same[n]]["start"]) for n in said if not right(n)][:20],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("films", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of the copies")
    parser.add_argument("--distances", nargs="+", type=float, default=[6, 8, 10, 12, 14])
    parser.add_argument("--kinds", nargs="+", choices=list(COPIES), default=list(COPIES))
    args = parser.parse_args()
    originals = [each for film in args.films for each in hashed(film, args.out / "original" / f"{film.stem}.json")]
    print(json.dumps({"films": len(args.films), "segments": len(originals)}), flush=True)
    for kind in args.kinds:
        begun = time.process_time()
        copies = []
        for film in args.films:
            copies += hashed(copy(film, kind, args.out), args.out / kind / f"{film.stem}.json")
        spent = time.process_time() - begun
        for distance in args.distances:
            found = score(originals, copies, distance, kind == "mirrored")
            print(json.dumps({"kind": kind, **found, "cpu_s": round(spent, 1)}), flush=True)


if __name__ == "__main__":
    main()
