"""Paints a part of a video or picture anew; all else stays as it is.

    latentvid inpaint --clip clip.mp4 --mask mask.png --prompt "a blue 3 moves up" [--output new.mp4]

The mask is a picture, or a video with a frame for each of the clip's, of the clip's size: white where to paint. The
clip's fps, size and audio are kept.
"""

import argparse
from pathlib import Path

from ..errors import user_errors
from ..pipelines import arguments


def parse() -> argparse.Namespace:
    parser = arguments.parser_of(__doc__, known=True)
    parser.add_argument("--clip", type=Path, required=True, help="video or picture")
    parser.add_argument("--mask", type=Path, required=True, help="picture or video, white where to paint")
    parser.add_argument("--prompt", required=True, help="what the whole clip then shows")
    parser.add_argument("--frames", type=int, help="of the clip, from its start (default: all)")
    arguments.add_sizes(parser)
    return parser.parse_args()


@user_errors()
def main() -> None:
    args = parse()
    # after the options are read: --help and wrong ones are answered at once
    from ..pipelines import command, edits, inputs, outputs
    from ..pipelines.loading import load_pipeline

    outputs.check_output(args.output, args.fps)
    pipeline = load_pipeline(args.model, args.device, **arguments.loading(args))
    sampling = command.sampling_of(args, pipeline)
    size = {name: getattr(args, name) for name in ("height", "width", "frames", "large")}
    source = inputs.read_footage(args.clip, pipeline, **size)
    mask = inputs.read_mask(args.mask, source)
    command.note_condition(pipeline, sampling, *(("inpaint", "outpaint", "mask") if pipeline.told else ()))
    fps = args.fps or source.fps
    command.note_rate(pipeline, fps, args.fps)
    clip = command.in_windows(
        edits.inpaint_windows,
        pipeline,
        source,
        mask,
        args.prompt,
        large=args.large,
        fps=fps,
        seed=args.seed,
        negative_prompt=args.negative_prompt,
        sampling=sampling,
    )
    outputs.write(args.output, clip, fps, f"{mask.float().mean():.0%} painted anew", sound=source)
