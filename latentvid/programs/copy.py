"""Copies a file or a folder (checkpoints, latents, weights, clips) from a URL to this machine, or from here to a URL.

    latentvid copy runs/mine/checkpoints s3://bucket/mine/checkpoints
    latentvid copy s3://bucket/mine/latents runs/mine/latents

Started again, it goes on where it was.
"""

from ..command_line import Parser
from ..errors import user_errors


@user_errors()
def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("source", help="file or folder, or a URL: s3://, gs://, hf://, https://, ...")
    parser.add_argument("target", help="where it goes: a URL, or a path of this machine")
    args = parser.parse_args()
    # after the options are read: --help and wrong ones are answered at once
    from ..data.access.copies import copy
    from ..places import shown

    print(f"copied to {shown(args.target)}: {copy(args.source, args.target)}")
