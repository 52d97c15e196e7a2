"""Changes what a video or picture shows, from what a prompt says of it to what another says.

    latentvid edit --clip clip.mp4 --source "a red 7 moves up" --prompt "a red 3 moves up" [--output new.mp4]

Method inversion finds the noise that leads to the clip by its source prompt and samples anew from it; sdedit adds
random noise and needs no source prompt; flow moves the clip by the difference of what the model says of both prompts
(FlowEdit), and finds no noise; tokenflow is by a model of images, whose frames share features (TokenFlow). --mask
limits the change. The clip's fps, size and audio are kept; a long one goes through in windows and is written as it is
made (docs/editing.md).
"""

import argparse
from functools import partial

from ..command_line import Parser
from ..errors import UserError, user_errors
from ..limits import number
from ..pipelines import arguments, defaults


def options() -> Parser:
    parser = arguments.parser_of(__doc__)
    arguments.add_clip(parser)
    arguments.add_mask(parser)
    parser.add_argument(
        "--mask-words",
        metavar="WORDS",
        help="words of --source (sdedit: of --prompt): where the model's attention finds them may change, no more",
    )
    parser.add_argument("--source", help="what it shows (method sdedit does without)")
    parser.add_argument("--prompt", required=True, help="what it is to show")
    parser.add_argument("--method", choices=defaults.METHODS, default="inversion", help="default: %(default)s")
    usual = ", ".join(f"{level} for {method}" for method, level in defaults.STRENGTH.items())
    parser.add_argument("--strength", type=float, help=f"0 to 1, how much may change (default: {usual})")
    arguments.add_flow(parser)
    parser.add_argument(
        "--keyframe-every",
        type=number("keyframe_every"),
        metavar="FRAMES",
        help=f"method tokenflow: how many frames have a keyframe among them (default: {defaults.KEYFRAME_EVERY})",
    )
    return parser


def parse() -> argparse.Namespace:
    return options().parse_args()


@user_errors()
def main() -> None:
    args = parse()
    # after the options are read: --help and wrong ones are answered at once
    from ..pipelines import command, edits, outputs, sources
    from ..pipelines.clip_windows import in_turn
    from ..pipelines.flow import FlowEdit
    from ..pipelines.token_flow import check_image_model, token_flow_windows

    outputs.check_output(args.output, args.fps)
    if args.method != "sdedit" and args.source is None:
        raise UserError(f"--method {args.method} needs --source, a prompt for the clip as it is; sdedit does without")
    if args.method == "sdedit" and args.source is not None:
        raise UserError("--source is of the other methods: --method sdedit does without")
    if args.method != "tokenflow" and args.keyframe_every is not None:
        raise UserError(f"--keyframe-every is of --method tokenflow: --method {args.method} does without")
    flow = arguments.flow_of(args)
    pipeline, sampling = command.open_model(args)
    pictures = args.method == "tokenflow"
    if pictures:
        check_image_model(pipeline)
    source, fps = command.open_clip(args, pipeline, pictures=pictures)
    if args.mask_words is None:
        mask = command.mask_of(args, pipeline, source, sampling, args.grow)
    else:
        mask = command.mask_by_words(args, pipeline, sampling, args.source or args.prompt)
    prompts, how = (args.source or "", args.prompt), {"seed": args.seed, "negative_prompt": args.negative_prompt}
    how["sampling"] = sources.quiet(source, sampling)
    if pictures:
        words = {"every": args.keyframe_every or defaults.KEYFRAME_EVERY, **how}
        make = in_turn(lambda windows: token_flow_windows(pipeline, windows, *prompts, args.strength, **words))
    else:
        how |= {"fps": fps, "flow": None if flow is None else FlowEdit(**flow)}
        make = partial(edits.edit_window, pipeline, *prompts, args.method, args.strength, **how)
    outputs.write_edited(args.output, sources.edited(source, make, mask), source, fps, args.prompt)
