"""Makes a video that begins with a picture.

    latentvid i2v --image picture.png --prompt "a red 7 moves up" [--output clip.mp4]

Several --image with as many --prompt make several clips, sampled together. The clip has the picture's size, or the
nearest that the model makes. The output's ending chooses the format: mp4, webm, gif, or png (a contact sheet).
"""

import argparse
from pathlib import Path

from ..command_line import Parser
from ..errors import UserError, user_errors
from ..pipelines import arguments


def options() -> Parser:
    parser = arguments.parser_of(__doc__, known=True)
    parser.add_argument("--image", type=Path, action="append", required=True, help="the first frame")
    parser.add_argument("--prompt", action="append", required=True, help="what happens from there; one for each image")
    arguments.add_length(parser, "1 + 4k, by the VAE's stride in time (default: the model's)")
    arguments.add_sizes(parser)
    arguments.add_references(parser)
    return parser


def parse() -> argparse.Namespace:
    return options().parse_args()


@user_errors()
def main() -> None:
    args = parse()
    # after the options are read: --help and wrong ones are answered at once
    from ..pipelines import command, inputs, outputs, tasks
    from ..pipelines.references import read_references

    outputs.check_output(args.output, args.fps, len(args.image))
    if len(args.image) != len(args.prompt):
        raise UserError(f"{len(args.image)} --image and {len(args.prompt)} --prompt: give a prompt for each image")
    pipeline, sampling = command.open_model(args)
    fps, size = args.fps or pipeline.config.fps, {"height": args.height, "width": args.width, "large": args.large}
    frames = command.legal_frames(pipeline, args.frames, args.seconds, fps)
    pictures = [inputs.read_picture(path, pipeline, **size) for path in args.image]
    length = frames or pipeline.config.frames
    shown = [read_references(pipeline, args.reference, length, *picture.size, args.signal) for picture in pictures]
    command.note_condition(pipeline, sampling, "first", "prefix", "random")
    command.note_size(pipeline, frames or 1)
    command.note_rate(pipeline, fps, args.fps)
    clips = tasks.image_to_video(
        pipeline,
        [picture.frames[0] for picture in pictures],
        args.prompt,
        frames,
        fps=fps,
        seed=args.seed,
        negative_prompt=args.negative_prompt,
        references=shown,
        sampling=sampling,
    )
    outputs.write_all(args.output, clips, fps, args.prompt)
