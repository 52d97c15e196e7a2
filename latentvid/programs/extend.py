"""Goes on with a video: any number of seconds more, in memory that does not grow with them.

    latentvid extend --clip clip.mp4 --prompt "a red 7 bounces up and down" --seconds 10 [--output long.mp4]

The output is the clip, as it is, and what follows it, written as it is made, at the clip's fps, size and range of
colours, with its audio as far as that goes. The model goes on window by window from the last frames, in a size that it
makes. Stopped, it leaves what is made in long.partial.mp4.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ..command_line import Parser
from ..errors import user_errors
from ..pipelines import arguments


def options() -> Parser:
    parser = arguments.parser_of(__doc__, known=True)
    parser.add_argument("--clip", type=Path, required=True, help="video, of any length and size")
    parser.add_argument("--prompt", required=True, help="what it is to show")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--seconds", type=float, help="how much longer the clip becomes")
    length.add_argument("--frames", type=int, help="the same in frames")
    parser.add_argument("--window", type=int, help="frames of a window (default: the model's)")
    parser.add_argument("--context", type=int, help="frames of each window that are given (about 2 of 5)")
    arguments.add_sizes(parser, "the clip's")
    return parser


def parse() -> argparse.Namespace:
    return options().parse_args()


@user_errors()
def main() -> None:
    args = parse()
    # after the options are read: --help and wrong ones are answered at once
    from torch import Tensor

    from ..data.video.reading import probe, read_frames
    from ..data.video.writing import has_full_range
    from ..pipelines import command, outputs, sources
    from ..pipelines.rollout import rollout

    outputs.check_stream(args.output)
    pipeline, sampling = command.open_model(args)
    longest = pipeline.config.frames if args.window is None else max(1, args.window)  # that a context can be
    size = {name: getattr(args, name) for name in ("height", "width", "large")}
    source = sources.open_source(args.clip, pipeline, together=longest, **size)
    fps = args.fps or source.fps
    frames = command.asked_frames(args.frames, args.seconds, fps)
    end = read_frames(args.clip, max(0, source.frames - longest), threads=0)
    end = source.canvas.into(source.fit(end))
    options = {name: getattr(args, name) for name in ("negative_prompt", "window", "context", "seed")} | {"fps": fps}
    command.note_rate(pipeline, fps, args.fps)
    sampling = replace(sampling, progress=False)
    windows = rollout(pipeline, [args.prompt], frames, clips=[end], names=[args.clip], sampling=sampling, **options)
    command.note_condition(pipeline, sampling, "prefix", "random")

    def pieces() -> Iterator[Tensor]:
        yield from source.chunks()
        yield from source.shown(piece for (piece,) in windows)

    alike = abs(fps - probe(args.clip).fps) < 1e-3 * fps
    words = {"given": source.frames, "sound": args.clip if alike else None, "full_range": has_full_range(args.clip)}
    outputs.write_stream(args.output, pieces(), source.size, fps, source.frames + frames, **words)
