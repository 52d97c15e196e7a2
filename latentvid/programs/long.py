"""Makes a long video from a prompt, written as it is made.

    latentvid long --prompt "a red 7 bounces up and down" --seconds 60 [--order nuwa-xl] [--output long.mp4]

Order rollout goes on window by window from the last frames, without end and in memory that does not grow. Order nuwa-xl
makes keyframes of the whole first and fills in between them, level by level: it takes --local-prompt, one for each
segment between the keyframes. With --then what is made goes through further models, piece by piece: a cascade. Stopped,
it leaves what is made in long.partial.mp4.
"""

import argparse
from dataclasses import replace

from ..command_line import Parser
from ..errors import UserError, user_errors
from ..pipelines import arguments, defaults

ONLY = {"rollout": ("window", "context"), "nuwa-xl": ("local_prompt", "tokens_per_pack")}


def options() -> Parser:
    parser = arguments.parser_of(__doc__, known=True)
    parser.add_argument("--prompt", required=True, help="what to show")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--seconds", type=float, help="at the fps of the file")
    length.add_argument("--frames", type=int, help="the same in frames")
    parser.add_argument("--order", choices=tuple(ONLY), default="rollout", help="default: %(default)s")
    parser.add_argument("--window", type=int, help="rollout: frames of a window (default: the model's)")
    parser.add_argument("--context", type=int, help="rollout: frames of a window that are given (about 2 of 5)")
    parser.add_argument("--local-prompt", action="append", help="nuwa-xl: of a segment, in order; once for each")
    parser.add_argument("--tokens-per-pack", type=int, help=f"nuwa-xl (default: {defaults.TOKENS_PER_PACK})")
    parser.add_argument("--height", type=int, help="pixels (default: the model's)")
    parser.add_argument("--width", type=int, help="pixels (default: the model's)")
    arguments.add_then(parser)
    arguments.add_reference_noise(parser)
    return parser


def parse() -> argparse.Namespace:
    parser = options()
    args = parser.parse_args()
    if args.reference_noise is not None and not args.then:
        parser.error("--reference-noise is of what the models of --then see: leave it out")
    return args


@user_errors()
def main() -> None:
    args = parse()
    # after the options are read: --help and wrong ones are answered at once
    from ..pipelines import command, outputs
    from ..pipelines.hierarchy import nuwa_xl
    from ..pipelines.loading import load_pipeline
    from ..pipelines.rollout import rollout

    outputs.check_stream(args.output)
    for order, names in ONLY.items():
        for name in names:
            if order != args.order and getattr(args, name) is not None:
                raise UserError(f"--{name.replace('_', '-')} is for --order {order}: leave it out")
    pipeline = load_pipeline(args.model, args.device, **arguments.loading(args))
    fps = args.fps or pipeline.config.fps
    frames = command.asked_frames(args.frames, args.seconds, fps)
    sampling = replace(command.sampling_of(args, pipeline), progress=False, reference_noise=None)
    options = {name: getattr(args, name) for name in ("negative_prompt", "height", "width", "seed")} | {"fps": fps}
    command.note_rate(pipeline, fps, args.fps)
    if args.order == "rollout":
        sizes = {"window": args.window, "context": args.context}
        windows = rollout(pipeline, [args.prompt], frames, sampling=sampling, **sizes, **options)
        pieces = (piece for (piece,) in windows)
    else:
        budget = defaults.TOKENS_PER_PACK if args.tokens_per_pack is None else args.tokens_per_pack
        local = {"local_prompts": args.local_prompt, "tokens_per_pack": budget}
        pieces = nuwa_xl(pipeline, args.prompt, frames, sampling=sampling, **local, **options)
    command.note_condition(pipeline, sampling)
    size = frames, args.height or pipeline.config.height, args.width or pipeline.config.width
    cascade = command.cascade_of(args, pipeline, [args.prompt], size, fps)
    made, sides, fps = cascade.made[-1] if cascade.stages else (frames, size[1:], fps)
    outputs.write_stream(args.output, command.streamed(args, cascade, pieces, args.prompt), sides, fps, made)
