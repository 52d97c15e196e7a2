"""Changes what a video or picture shows, from what a prompt says of it to what another says.

    latentvid edit --clip clip.mp4 --source "a red 7 moves up" --prompt "a red 3 moves up" [--output new.mp4]

Method inversion finds the noise that leads to the clip by its source prompt and samples anew from it; sdedit adds
random noise and needs no source prompt; flow moves the clip by the difference of what the model says of both prompts
(FlowEdit), and finds no noise; tokenflow is by a model of images, whose frames share features (TokenFlow). The clip's
fps, size and audio are kept.
"""

import argparse
from pathlib import Path

from ..errors import UserError, user_errors
from ..limits import number
from ..pipelines import arguments, defaults


def parse() -> argparse.Namespace:
    parser = arguments.parser_of(__doc__)
    parser.add_argument("--clip", type=Path, required=True, help="video or picture")
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
    parser.add_argument("--frames", type=int, help="of the clip, from its start (default: all)")
    arguments.add_sizes(parser)
    return parser.parse_args()


@user_errors()
def main() -> None:
    args = parse()
    # after the options are read: --help and wrong ones are answered at once
    from ..pipelines import command, edits, inputs, outputs
    from ..pipelines.flow import FlowEdit
    from ..pipelines.loading import load_pipeline
    from ..pipelines.token_flow import token_flow

    outputs.check_output(args.output, args.fps)
    if args.method != "sdedit" and args.source is None:
        raise UserError(f"--method {args.method} needs --source, a prompt for the clip as it is; sdedit does without")
    if args.method == "sdedit" and args.source is not None:
        raise UserError("--source is of the other methods: --method sdedit does without")
    if args.method != "tokenflow" and args.keyframe_every is not None:
        raise UserError(f"--keyframe-every is of --method tokenflow: --method {args.method} does without")
    flow = arguments.flow_of(args)
    pipeline = load_pipeline(args.model, args.device, **arguments.loading(args))
    size = {name: getattr(args, name) for name in ("height", "width", "frames", "large")}
    source = inputs.read_footage(args.clip, pipeline, **size)
    fps = args.fps or source.fps
    command.note_rate(pipeline, fps, args.fps)
    prompts, how = (args.source or "", args.prompt), {"seed": args.seed, "negative_prompt": args.negative_prompt}
    how["sampling"] = command.sampling_of(args, pipeline)
    if args.method == "tokenflow":
        every = args.keyframe_every or defaults.KEYFRAME_EVERY
        clip = token_flow(pipeline, source.frames, *prompts, args.strength, every=every, **how)
    else:
        how |= {"fps": fps, "flow": None if flow is None else FlowEdit(**flow), "large": args.large}
        clip = command.in_windows(edits.edit_windows, pipeline, source, *prompts, args.method, args.strength, **how)
    outputs.write(args.output, clip, fps, args.prompt, sound=source)
