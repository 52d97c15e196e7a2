"""One page about a run (curves, validation, samples, scores, speed, data, configuration), or about a data set.

    python -m latentvid.report RUN                        # writes RUN/report.html
    python -m latentvid.report RUN OTHER --out page.html  # side by side
    python -m latentvid.report DATASET                    # what latentvid.curation wrote, or a manifest

RUN is a training run's folder, a demo's, or a folder of several runs. What it does not hold is left out, with a note.
The page needs no network and no scripts.
"""

from __future__ import annotations

from pathlib import Path

from ..command_line import Parser
from ..errors import user_errors
from ..limits import number


def main() -> None:
    parser = Parser(prog="python -m latentvid.report", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a folder such as runs/demo; more: compare")
    parser.add_argument("--out", type=Path, help="the page; default RUN/report.html, or RUN/comparison.html")
    seen = parser.add_argument_group("of a data set: what training will make of its clips")
    seen.add_argument("--max-frames", type=number("max_frames"), default=17, help="of a window (default %(default)s)")
    seen.add_argument("--max-area", type=number("max_area"), help="pixels of a frame (default: native)")
    seen.add_argument("--crop", type=number("crop"), help="side of a random square (default: whole frames)")
    seen.add_argument("--fps", type=number("fps"), help="frames a second (default: the clips' own)")
    seen.add_argument("--spatial-stride", type=number("stride"), default=16, help="sides are multiples (default 16)")
    seen.add_argument("--temporal-stride", type=number("temporal_stride"), default=4, help="frames are 1 + a multiple "
                      "(default 4)")  # fmt: skip
    args = parser.parse_args()
    # after the options are read: --help and wrong ones are answered at once
    from ..data.windows import Transform
    from .dataset import is_dataset
    from .pages import write_dataset_report, write_report

    if not any(map(is_dataset, args.runs)):
        print(write_report(args.runs, args.out), flush=True)
        return
    if len(args.runs) > 1:
        parser.error("one data set has a page: give its folder, or its manifest, alone")
    names = ("spatial_stride", "temporal_stride", "max_frames", "max_area", "crop", "fps")
    transform = Transform(**{name: getattr(args, name) for name in names})
    print(write_dataset_report(args.runs[0], args.out, transform), flush=True)


if __name__ == "__main__":
    with user_errors():
        main()
