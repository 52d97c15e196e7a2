"""One page about a run: curves, validation, samples, scores, speed, data and configuration.

    python -m latentvid.report RUN                        # writes RUN/report.html
    python -m latentvid.report RUN OTHER --out page.html  # side by side

RUN is a training run's folder, a demo's, or a folder of several runs. What it does not hold is left out, with a note.
The page needs no network and no scripts.
"""

from __future__ import annotations

from pathlib import Path

from ..command_line import Parser
from ..errors import user_errors


def main() -> None:
    parser = Parser(prog="python -m latentvid.report", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a folder such as runs/demo; more: compare")
    parser.add_argument("--out", type=Path, help="the page; default RUN/report.html, or RUN/comparison.html")
    args = parser.parse_args()
    # after the options are read: --help and wrong ones are answered at once
    from .pages import write_report

    print(write_report(args.runs, args.out), flush=True)


if __name__ == "__main__":
    with user_errors():
        main()
