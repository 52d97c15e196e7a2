"""Lists the configurations that are shipped with the package, prints one, or copies them all.

    latentvid configs                      # their names
    latentvid configs dit/base > mine.yaml
    latentvid configs --copy configs       # with those of launchers, which name each other as configs/...

A training takes a shipped configuration by its name: `latentvid train-dit base --run.dir runs/mine`.
"""

import shutil
import sys
from pathlib import Path

from ..command_line import Parser
from ..config.shipped import FOLDER, find, names_of
from ..errors import UserError, user_errors


@user_errors()
def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("name", nargs="?", help="of the one to print")
    parser.add_argument("--copy", type=Path, metavar="DIR", help="folder to make, with all of them")
    args = parser.parse_args()
    if args.copy is not None and args.name is not None:
        parser.error("--copy copies all: leave the name out")
    if args.copy is not None:
        if args.copy.exists():
            raise UserError(f"--copy {args.copy} exists: give a folder that does not, so that nothing of yours is lost")
        shutil.copytree(FOLDER, args.copy)
        print(args.copy)
    elif args.name is not None:
        sys.stdout.write(find(args.name).read_text(encoding="utf-8"))
    else:
        for name in names_of():
            print(f"{name:<22}{_about(FOLDER / f'{name}.yaml')}")


def _about(file: Path) -> str:
    """The first sentence of the comment that a configuration begins with."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines).partition(". ")[0].partition(": ")[0].rstrip(".")
