"""Makes a clip larger, or gives it more frames, with a model that was trained to (docs/cascades.md).

    latentvid upscale --model PIPELINE --clip any.mp4 [--by 2] [--prompt TEXT] [--output large.mp4]
    latentvid upscale --model PIPELINE --clip slow.mp4 --fps 16 [--output smooth.mp4]

The output is written as it is made, with the clip's audio: a long clip goes through in windows, large frames in tiles,
in memory that does not grow with its length. --fps is of the output: a whole number of times the clip's. --then takes
what is made through further models. Stopped, it leaves what is made in large.partial.mp4.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from ..command_line import Parser
from ..errors import user_errors
from ..pipelines import arguments

CHUNK = 16  # frames that are read at a time


def options() -> Parser:
    parser = arguments.parser_of(__doc__)
    parser.add_argument("--clip", type=Path, required=True, help="video or picture")
    parser.add_argument("--by", type=int, help="how many times as large (default: the least that the model makes)")
    parser.add_argument("--prompt", default="", help="what is shown")
    arguments.add_reference_noise(parser)
    arguments.add_then(parser)
    return parser


def parse() -> argparse.Namespace:
    return options().parse_args()


@user_errors()
def main() -> None:
    args = parse()
    # after the options are read: --help and wrong ones are answered at once
    import torch

    from ..data.video.reading import probe, read_chunks
    from ..pipelines import cascade, command, inputs, outputs
    from ..pipelines.loading import load_pipeline

    info = probe(args.clip)
    (outputs.check_stream if info.frames > 1 else outputs.check_output)(args.output)
    pipeline = load_pipeline(args.model, args.device, **arguments.loading(args))
    fps = info.fps or pipeline.config.fps
    times = None if args.fps is None else cascade.times_of(args.fps, fps, args.clip)
    first = cascade.Stage.of(pipeline, f"--model {args.model}", args.by, times)
    stages = [first, *cascade.open_stages(args.then, args.device, args.mixed_precision)]
    size = info.height, info.width
    planned = cascade.Cascade.of(stages, info.frames, size, fps, [args.prompt], args.large, args.negative_prompt)
    inputs.say_depth(args.clip)
    command.say_stages(planned, info.frames, size, fps)
    usual = command.of_stages(args, stages)
    own = command.sampling_of(args, pipeline)
    samplings = [replace(own, progress=False, reference_noise=usual[0].reference_noise), *usual[1:]]
    words = {"seed": args.seed, "negative_prompt": args.negative_prompt, "samplings": samplings}
    pieces = planned.run(read_chunks(args.clip, CHUNK, CHUNK, threads=0), args.prompt, **words)
    frames, size, fps = planned.made[-1]
    if info.frames == 1:
        outputs.write(args.output, torch.cat(list(pieces)), fps, "1 frame")
        return
    outputs.write_stream(args.output, pieces, size, fps, frames, sound=args.clip)
