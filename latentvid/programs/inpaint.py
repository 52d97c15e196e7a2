"""Paints a part of a video or picture anew; all else stays as it is (docs/editing.md).

    latentvid inpaint --clip clip.mp4 --mask mask.png --prompt "a blue 3 moves up" [--output new.mp4]
    latentvid inpaint --clip clip.mp4 --mask mask.mp4 --remove "a red 7" [--output without.mp4]
    latentvid inpaint --clip clip.mp4 --outpaint 0 0 64 64 --prompt "a wide street" [--output wide.mp4]

The mask is a picture, or a video with a frame for each of the clip's, of the clip's size: white where to paint. With
--remove, which names what the mask covers, that is led away from; --outpaint paints so many pixels beyond the clip's
edges. The clip's fps, size and audio are kept; a long one goes through in windows and is written as it is made.
"""

import argparse
from functools import partial

from ..command_line import Parser
from ..errors import user_errors
from ..pipelines import arguments

SIDES = ("TOP", "BOTTOM", "LEFT", "RIGHT")


def options() -> Parser:
    parser = arguments.parser_of(__doc__, known=True)
    arguments.add_clip(parser)
    arguments.add_mask(parser)
    parser.add_argument(
        "--outpaint", dest="beyond", type=int, nargs=4, metavar=SIDES, help="pixels to paint beyond the clip's edges"
    )
    parser.add_argument("--prompt", help="what the whole clip then shows (with --remove: default nothing said)")
    parser.add_argument("--remove", metavar="TEXT", help="what the mask covers, of which nothing is to be left")
    return parser


def parse() -> argparse.Namespace:
    parser = options()
    args = parser.parse_args()
    if (args.mask is None) == (args.beyond is None):
        parser.error("give --mask, or --outpaint")
    if args.prompt is None and args.remove is None:
        parser.error("give --prompt, or --remove")
    if args.remove is not None and (args.negative_prompt is not None or args.beyond is not None):
        parser.error("--remove is a negative prompt for what --mask covers: leave --negative-prompt and --outpaint out")
    return args


@user_errors()
def main() -> None:
    args = parse()
    # after the options are read: --help and wrong ones are answered at once
    from ..pipelines import command, edits, outputs, sources

    outputs.check_output(args.output, args.fps)
    pipeline, sampling = command.open_model(args)
    source, fps = command.open_clip(args, pipeline, beyond=args.beyond)
    grow = pipeline.codec.spatial_stride if args.remove is not None and args.grow is None else args.grow
    mask = command.mask_of(args, pipeline, source, sampling, grow)
    command.note_condition(pipeline, sampling, *(("inpaint", "outpaint", "mask") if pipeline.told else ()))
    make = partial(
        edits.inpaint_window,
        pipeline,
        args.prompt or "",
        fps=fps,
        seed=args.seed,
        negative_prompt=args.negative_prompt if args.remove is None else args.remove,
        sampling=sources.quiet(source, sampling),
    )
    pieces = sources.edited(source, make, mask)
    outputs.write_edited(args.output, pieces, source, fps, f"{mask.share:.0%} painted anew")
