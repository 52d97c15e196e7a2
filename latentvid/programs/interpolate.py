"""Fills in frames: between two pictures, or between all frames of a clip.

    latentvid interpolate --first a.png --last b.png --between 12 [--prompt TEXT] [--output clip.mp4]
    latentvid interpolate --clip slow.mp4 --factor 4 [--prompt TEXT] [--output clip.mp4]

A clip of any length and size gets --factor times its frames a second and keeps its duration, size and audio; it is
written as it is made, in memory that does not grow. The model makes 4k frames between two (by the VAE's stride in
time); of other numbers the nearest in time are taken, and this is said.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from ..command_line import Parser
from ..errors import UserError, user_errors
from ..pipelines import arguments, defaults
from ..words import counted

FACTOR = 4
OF_CLIP = ("factor", "frames", "tokens_per_pack")


def options() -> Parser:
    parser = arguments.parser_of(__doc__, known=True)
    parser.add_argument("--first", type=Path, help="picture")
    parser.add_argument("--last", type=Path, help="picture")
    parser.add_argument(
        "--between", type=int, help="frames between the two (default: as many as the model's clips have)"
    )
    parser.add_argument("--clip", type=Path, help="video, of any length and size")
    parser.add_argument("--factor", type=int, help=f"frames for each of the clip's (default: {FACTOR})")
    parser.add_argument("--frames", type=int, help="of --clip, from its start (default: all)")
    parser.add_argument("--tokens-per-pack", type=int, help=f"of --clip (default: {defaults.TOKENS_PER_PACK})")
    parser.add_argument("--prompt", default="", help="what is shown")
    arguments.add_sizes(parser, "the clip's; of pictures at most what was trained")
    return parser


def parse() -> argparse.Namespace:
    parser = options()
    args = parser.parse_args()
    if (args.clip is None) == (args.first is None) or (args.first is None) != (args.last is None):
        parser.error("give --first and --last, or --clip")
    if args.clip is not None and args.between is not None:
        parser.error("--between is of --first and --last: with --clip give --factor")
    if args.clip is None and (wrong := [name for name in OF_CLIP if getattr(args, name) is not None]):
        parser.error(f"--{wrong[0].replace('_', '-')} is of --clip: with --first and --last give --between, or nothing")
    return args


@user_errors()
def main() -> None:
    args = parse()
    # after the options are read: --help and wrong ones are answered at once
    from ..pipelines import command, inputs, outputs, sources, tasks

    outputs.check_output(args.output, args.fps)
    pipeline, sampling = command.open_model(args)
    size = {name: getattr(args, name) for name in ("height", "width", "large")}
    words = {"seed": args.seed, "negative_prompt": args.negative_prompt, "sampling": sampling}
    stride = pipeline.codec.temporal_stride
    factor = FACTOR if args.factor is None else args.factor
    between = args.between if args.clip is None else max(1, factor - 1)
    if between is None:
        between = max(stride, pipeline.config.frames - 1 - stride)
    if args.clip is None:
        ends = [inputs.read_picture(path, pipeline, **size) for path in (args.first, args.last)]
        fps = args.fps or pipeline.config.fps
    else:
        together = 1 + tasks.made_between(between, stride) + stride
        source = sources.open_source(args.clip, pipeline, frames=args.frames, together=together, **size)
        if source.frames < 2:
            raise UserError(f"{args.clip} has one frame: --clip wants 2 or more (from one picture on: `latentvid i2v`)")
        tasks.check_factor(source.frames, factor)
        fps = args.fps or source.fps * factor
        outputs.check_edited(args.output, source, fps, factor)
    command.note_condition(pipeline, sampling, "ends", "random")
    if (made := tasks.makes_between(pipeline, between)) != between:
        print(
            f"{counted(between, 'frame')} between two: the nearest in time of the {made} that the model makes",
            flush=True,
        )
    words["fps"] = fps
    command.note_rate(pipeline, fps, args.fps)
    if args.clip is None:
        first, last = ([end.frames[0]] for end in ends)
        (clip,) = tasks.interpolate(pipeline, first, last, [args.prompt], between, **words)
        outputs.write(args.output, clip, fps, counted(len(clip), "frame"))
        return
    words["sampling"] = replace(sampling, progress=False)  # a bar of frames is shown
    words["tokens_per_pack"] = args.tokens_per_pack or defaults.TOKENS_PER_PACK
    pieces = source.shown(tasks.filled_in(pipeline, source.seen(), factor, args.prompt, **words))
    outputs.write_edited(args.output, pieces, source, fps, rate=factor)
