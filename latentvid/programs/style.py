"""Shows a video or picture in the look of a picture: its colours, strokes and textures; what is seen stays.

    latentvid style --clip clip.mp4 --style painting.png [--prompt "a street"] [--output new.mp4]

The clip's noise is found by inversion and sampled anew beside the picture. A model that was trained with references of
role style is shown it so; any other of latentvid's transformers shares its attention with it (StyleAligned). --mask
limits the change. The clip's fps, size and audio are kept; a long one goes through in windows and is written as it is
made (docs/editing.md).
"""

import argparse
from functools import partial
from pathlib import Path

from ..command_line import Parser
from ..errors import user_errors
from ..limits import number
from ..pipelines import arguments, defaults


def options() -> Parser:
    parser = arguments.parser_of(__doc__)
    arguments.add_clip(parser)
    arguments.add_mask(parser)
    parser.add_argument("--style", type=Path, required=True, metavar="PICTURE", help="picture whose look is taken")
    parser.add_argument("--prompt", default="", help="what the clip shows (default: nothing said)")
    parser.add_argument("--style-prompt", help="what the picture shows (default: nothing said)")
    parser.add_argument(
        "--style-scale",
        type=number("style_scale"),
        help=f"of shared attention: the more, the more of the look is taken (default: {defaults.STYLE_SCALE})",
    )
    parser.add_argument(
        "--strength", type=float, help=f"0 to 1, how much may change (default: {defaults.STYLE_STRENGTH})"
    )
    return parser


def parse() -> argparse.Namespace:
    return options().parse_args()


@user_errors()
def main() -> None:
    args = parse()
    # after the options are read: --help and wrong ones are answered at once
    from ..pipelines import command, outputs, sources
    from ..pipelines.style import check_style, style_picture, style_window

    outputs.check_output(args.output, args.fps)
    pipeline, sampling = command.open_model(args)
    trained = check_style(pipeline, sampling)
    source, fps = command.open_clip(args, pipeline)
    mask = command.mask_of(args, pipeline, source, sampling, args.grow)
    picture = style_picture(pipeline, args.style, source, args.large)
    make = partial(
        style_window,
        pipeline,
        picture,
        args.prompt,
        picture_prompt=args.style_prompt,
        strength=args.strength,
        scale=args.style_scale,
        fps=fps,
        seed=args.seed,
        negative_prompt=args.negative_prompt,
        sampling=sources.quiet(source, sampling),
    )
    said = f"in the look of {args.style.name}, {'as the model was trained' if trained else 'by shared attention'}"
    outputs.write_edited(args.output, sources.edited(source, make, mask), source, fps, said)
