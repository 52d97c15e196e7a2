"""Goes on with a video: any number of seconds more, in memory that does not grow with them.

    latentvid extend --clip clip.mp4 --prompt "a red 7 bounces up and down" --seconds 10 [--output long.mp4]

The output is the clip and what follows it, written as it is made, at the clip's fps and size, with its audio as far as
that goes. The model goes on window by window from the last frames. Stopped, it leaves what is made in long.partial.mp4.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ..errors import user_errors
from ..pipelines import arguments

CHUNK = 16  # frames of the clip that are copied at a time


def parse() -> argparse.Namespace:
    parser = arguments.parser_of(__doc__, known=True)
    parser.add_argument("--clip", type=Path, required=True, help="video")
    parser.add_argument("--prompt", required=True, help="what it is to show")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--seconds", type=float, help="how much longer the clip becomes")
    length.add_argument("--frames", type=int, help="the same in frames")
    parser.add_argument("--window", type=int, help="frames of a window (default: the model's)")
    parser.add_argument("--context", type=int, help="frames of each window that are given (about 2 of 5)")
    arguments.add_sizes(parser)
    return parser.parse_args()


@user_errors()
def main() -> None:
    args = parse()
    # after the options are read: --help and wrong ones are answered at once
    from torch import Tensor

    from ..data.transforms import fit
    from ..data.video.reading import probe, read_chunks, read_frames
    from ..pipelines import command, inputs, outputs
    from ..pipelines.rollout import rollout

    outputs.check_stream(args.output)
    (pipeline, sampling), info = command.open_model(args), probe(args.clip)
    fps = args.fps or info.fps or pipeline.config.fps
    frames = command.asked_frames(args.frames, args.seconds, fps)
    size = inputs.footage_size(args.clip, info, pipeline, height=args.height, width=args.width, large=args.large)
    longest = pipeline.config.frames if args.window is None else max(1, args.window)  # that a context can be
    end = read_frames(args.clip, max(0, info.frames - longest), threads=0)
    options = {name: getattr(args, name) for name in ("negative_prompt", "window", "context", "seed")} | {"fps": fps}
    command.note_rate(pipeline, fps, args.fps)
    sampling = replace(sampling, progress=False)
    windows = rollout(pipeline, [args.prompt], frames, clips=[fit(end, *size)], sampling=sampling, **options)
    command.note_condition(pipeline, sampling, "prefix", "random")

    def pieces() -> Iterator[Tensor]:
        for chunk in read_chunks(args.clip, CHUNK, CHUNK, threads=0):
            yield fit(chunk, *size)
        for (piece,) in windows:
            yield piece

    sound = args.clip if abs(fps - info.fps) < 1e-3 * fps else None
    outputs.write_stream(args.output, pieces(), size, fps, info.frames + frames, given=info.frames, sound=sound)
