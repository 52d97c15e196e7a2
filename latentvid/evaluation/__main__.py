"""Scores clips: by themselves, against real ones, and each against the real one of the same name.

    [accelerate launch] -m latentvid.evaluation CLIPS [--real REAL] [--metrics fid fvd ...] [--weights DIR]

CLIPS and REAL are folders of videos and images, single files, or manifests. Prints a table, and writes scores.json,
scores.md and clips.html, a page of the best and worst clips; every score comes with the number of clips, an interval,
and what real clips get against real ones. Rows are kept, so that a run that was stopped goes on where it was; the
processes of a launch share the work.

`edit CLIPS EDITED ...` scores edits of clips instead: its options: -m latentvid.evaluation edit --help.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..command_line import Parser
from ..errors import user_errors
from .defaults import COMMON, PICTURES, RESAMPLES, RESIZINGS, SCORE_NAMES, SHOWN

if TYPE_CHECKING:
    from .edits.scoring import EditsConfig
    from .scoring import ScoringConfig


def parse() -> ScoringConfig:
    # what is not given is left to ScoringConfig
    parser = Parser(
        prog="python -m latentvid.evaluation",
        description=__doc__,
        epilog=f"scores: {', '.join(SCORE_NAMES)}",
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("clips", type=Path, metavar="CLIPS", help="what is scored")
    add("--real", type=Path, help="real clips to compare with")
    add("--against", type=Path, metavar="OTHER", help="another model's clips of the same prompts and seeds")
    add(
        "--metrics",
        nargs="+",
        metavar="NAME",
        help="scores by name, or MODULE:NAME (default: every score whose weights are available)",
    )
    add("--captions", type=Path, metavar="FILE", help="table (.jsonl, .csv, .parquet) of captions by file")
    add("--frames", type=int, help="of a clip, at most (16 unless given, of files of one length)")
    add("--fps", type=float, help="frames a second at which files are read (default: each at its own)")
    add("--stride", type=int, help="take every so many-th frame (default 1)")
    add("--drop-short", action="store_true", help="leave files out that have fewer frames than --frames")
    add("--allow", nargs="+", choices=COMMON, help="in what CLIPS and REAL may differ and be compared all the same")
    add("--size", type=int, nargs=2, metavar=("H", "W"), help="of a clip in pixels (default: each file's own)")
    add("--max-clips", type=int, metavar="N", help="clips that are scored, shared among the files (default: all)")
    add("--max-real", type=int, metavar="N", help="real clips, shared among the files (default: all)")
    add(
        "--weights",
        type=Path,
        metavar="DIR",
        help="folder of inception/, i3d/, videomae/, vjepa/, lpips/, clip/, raft/",
    )
    add("--inception", type=Path, metavar="FILE", help="Inception network, instead of DIR/inception")
    add("--resize", choices=RESIZINGS, help="how pictures are resized for it (default: as the network's own code does)")
    add("--i3d", type=Path, metavar="FILE", help="I3D network, instead of DIR/i3d")
    add("--extractor", nargs="+", metavar="MODULE:CLASS", help="networks of one's own, for distances of their features")
    add("--pictures", type=int, help=f"frames of a clip that Inception sees, 0 for all (default {PICTURES})")
    add("--out", type=Path, help="folder for scores.json, scores.md and clips.html (default scores)")
    add("--shown", type=int, help=f"best and worst clips on the page, 0 for no page (default {SHOWN})")
    add("--cache", type=Path, metavar="DIR", help="folder of the rows (default: rows in --out)")
    add("--resamples", type=int, metavar="N", help=f"halvings for the intervals, 0: no intervals (default {RESAMPLES})")
    values = vars(parser.parse_args())
    for option in ("max_real", "allow"):
        if option in values and "real" not in values:
            parser.error(f"--{option.replace('_', '-')} is of --real: give both, or neither")
    # after the options are read: --help and wrong ones are answered at once
    from .scoring import ScoringConfig, check_given

    check_given(values)
    return ScoringConfig(**values | ({"size": tuple(values["size"])} if "size" in values else {}))


def parse_edit(given: list[str]) -> EditsConfig:
    parser = Parser(
        prog="python -m latentvid.evaluation edit",
        description="Scores edits of real clips: what was to stay (PSNR, LPIPS, structure), what was asked for (CLIP, "
        "or measures of one's own), and flicker by the clips' own flow (docs/editing.md).",
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("clips", type=Path, metavar="CLIPS", help="folder of the clips that were edited")
    add("edited", type=Path, nargs="+", metavar="EDITED", help="folders of their edits, one a method, of equal names")
    add("--masks", type=Path, help="folder of pictures or videos of equal names, white where the change was asked for")
    add("--captions", type=Path, metavar="FILE", help="table of what the edits are to show (default: as beside them)")
    add("--source-captions", type=Path, metavar="FILE", help="table of what the clips show (default: as beside them)")
    add("--measures", nargs="+", metavar="MODULE:NAME", help="further ones, such as latentvid.demo.edits:JUDGED")
    add("--weights", type=Path, metavar="DIR", help="folder of lpips/, clip/, raft/ and vbench/ (DINO)")
    add("--device", help="cuda, cpu, ... (default: cuda where there is one)")
    add("--out", type=Path, help="folder for edits.json and edits.md (default edits)")
    values = vars(parser.parse_args(given))
    from .edits.scoring import EditsConfig

    return EditsConfig(**values)


def main() -> None:
    if sys.argv[1:2] == ["edit"]:
        config = parse_edit(sys.argv[2:])
        from .edits.scoring import score_edits

        print(score_edits(config).text(), flush=True)
        return
    config = parse()
    from .scoring import score_clips

    scored = score_clips(config)
    if scored is not None:
        print(scored.text(), flush=True)


if __name__ == "__main__":
    with user_errors():
        main()
