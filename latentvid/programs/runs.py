"""Lists training runs: what each trains, its state, step, loss (mean of 50 steps) and frames trained on a second.

    latentvid runs              # those below runs/
    latentvid runs FOLDER ...

Below the table stands the next useful command for each run that is not training.
"""

from pathlib import Path

from ..command_line import Parser
from ..errors import UserError, user_errors


@user_errors()
def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "folders", nargs="*", type=Path, metavar="FOLDER", help="runs, or what holds them (default runs)"
    )
    args = parser.parse_args()
    # after the options are read: --help and wrong ones are answered at once
    from ..report.listing import listed, runs_below, text_of

    folders = args.folders or [Path("runs")]
    found = [listed(folder) for folder in runs_below(folders)]
    if not found:
        raise UserError(f"there is no run below {', '.join(map(str, folders))}: a run's folder is its run.dir")
    print(text_of(found))
