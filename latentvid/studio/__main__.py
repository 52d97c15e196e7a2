"""The inference programs as pages in a browser, with a gallery and the runs in training (docs/studio.md).

    latentvid studio                              # the demo's pipeline, and what runs/ has made
    latentvid studio runs/mine/dit_run/pipeline --lora looks/striped.safetensors --gallery clips

It listens on this machine alone unless --listen says otherwise, which needs a password (--password-file, or the
environment's LATENTVID_STUDIO_PASSWORD). Needs the extra `studio`: pip install "latentvid[studio]".
"""

import os
from pathlib import Path

from ..command_line import Parser
from ..errors import UserError, user_errors

PASSWORD = "LATENTVID_STUDIO_PASSWORD"


def options() -> Parser:
    parser = Parser(prog="python -m latentvid.studio", description=__doc__)
    parser.add_argument(
        "models",
        nargs="*",
        metavar="PIPELINE",
        help="pipeline folders, or published models' folders or hub names (default: what --runs has made, or the "
        "demo's)",
    )
    parser.add_argument("--lora", nargs="+", default=[], metavar="FILE", help="files of LoRA that may be chosen")
    parser.add_argument("--control", nargs="+", default=[], metavar="FOLDER", help="ControlNets that may be chosen")
    parser.add_argument("--motion", nargs="+", default=[], metavar="FOLDER", help="motion modules that may be chosen")
    parser.add_argument(
        "--gallery", type=Path, default=Path("gallery"), help="folder for what is made (default: %(default)s)"
    )
    parser.add_argument(
        "--runs", nargs="+", type=Path, default=[Path("runs")], metavar="FOLDER",
        help="training runs to show, or what holds them (default: runs)",
    )  # fmt: skip
    parser.add_argument(
        "--listen", default="127.0.0.1", metavar="HOST", help="address to listen on (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=7860, help="default: %(default)s")
    parser.add_argument("--password-file", type=Path, help="file whose first line is the password")
    parser.add_argument("--max-megabytes", type=int, default=500, help="of an uploaded file (default: %(default)s)")
    parser.add_argument("--max-seconds", type=float, default=300.0, help="of an uploaded video (default: %(default)s)")
    return parser


@user_errors()
def main() -> None:
    args = options().parse_args()
    # after the options are read: --help and wrong ones are answered at once
    from .server import run

    run(args, read_password(args.password_file))


def read_password(file: Path | None) -> str | None:
    """Of the file, else of the environment; None for none. Raises UserError."""
    if file is None:
        return os.environ.get(PASSWORD) or None
    try:
        password = file.read_text(encoding="utf-8").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--password-file {file} cannot be read ({error}): give a file of one line") from None
    if not password:
        raise UserError(f"--password-file {file}: its first line is empty: write the password there")
    return password


if __name__ == "__main__":
    main()
