"""Encodes a manifest once into a cache of latents and text states, for the data.latents of `latentvid train-dit`.

    [accelerate launch -m] latentvid encode --manifest M.jsonl --vae RUN/vae --text-encoder T5 --out CACHE
    [accelerate launch -m] latentvid encode --manifest M.jsonl --model WAN_FOLDER --out CACHE

Training refuses a cache of other weights, or of clips that changed since. Run again, it makes only what is not there or
no longer right: what was killed goes on where it was. A training may read the cache meanwhile: it goes on with the
entries it began with. Several processes share the work.
"""

from argparse import ArgumentTypeError
from pathlib import Path

from .. import precision
from ..command_line import Parser
from ..config.schema import CaptionRules
from ..config.sections import Data
from ..errors import user_errors
from ..limits import number


def rate(text: str) -> float | tuple[float, float]:
    """One rate, or the lowest and the highest."""
    rates = [number("fps")(part) for part in text.split(",")]
    if len(rates) > 2 or rates != sorted(rates):
        raise ArgumentTypeError(f"{text:.40}: must be a rate, or the lowest and the highest with a comma between")
    return rates[0] if len(rates) == 1 else tuple(rates)


@user_errors()
def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--manifest", type=Path, required=True, help=".jsonl, .csv, .tsv or .parquet")
    parser.add_argument(
        "--model", help="folder or hub name of a published model: its VAE, text encoders and patch, unless given here"
    )
    parser.add_argument("--vae", type=Path, help="folder of the VAE (needed without --model)")
    parser.add_argument("--text-encoder", help="folder or hub name of a T5 encoder (needed without --model)")
    parser.add_argument(
        "--text-dtype",
        choices=("fp32", "bf16"),
        default="fp32",
        help="type of the weights of --model's text encoders; training's text.dtype must be the same (default fp32)",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the cache")
    parser.add_argument("--max-frames", type=number("data.max_frames"), default=17, help="of a window (default 17)")
    parser.add_argument("--max-area", type=int, default=None, help="largest height x width in pixels (default: native)")
    parser.add_argument(
        "--fps",
        type=rate,
        default=None,
        metavar="FPS|LOW,HIGH",
        help="frames a second that are taken of each clip, by their times; with two, at least and at most these "
        "(default: as the clips are)",
    )
    parser.add_argument(
        "--fps-slack",
        type=number("fps_slack"),
        default=Data.fps_slack,
        help="share by which a clip's own rate may lie below --fps; slower ones are left out (default %(default)s)",
    )
    parser.add_argument("--patch", type=int, default=2, help="patch size of the transformer to be trained (default 2)")
    parser.add_argument("--batch", type=int, default=16, help="clips encoded together (default 16)")
    parser.add_argument(
        "--caption-too-long",
        choices=("drop", "truncate"),
        default="drop",
        help="captions of more tokens than the text encoder takes: leave the clip out, or the caption's end",
    )
    parser.add_argument(
        "--unknown-share",
        type=number("unknown_share"),
        default=CaptionRules.unknown_share,
        help="largest share of captions that mean nothing to the text encoder (default %(default)s; 1 allows all)",
    )
    parser.add_argument("--path-column", help="the manifest's column of files (default: path or file_name)")
    parser.add_argument("--caption-column", help="the manifest's column of captions (default: caption or text)")
    parser.add_argument(
        "--clean",
        action="store_true",
        help="remove what nothing needs any more, such as entries of clips that left; not while a training reads it",
    )
    precision.add_argument(parser)
    args = parser.parse_args()
    if args.model is None and (args.vae is None or args.text_encoder is None):
        parser.error("give --vae and --text-encoder, or --model")
    # after the options are read: --help and wrong ones are answered at once
    from ..training.stages.dit.encode import EncodeConfig, encode_manifest

    print(encode_manifest(EncodeConfig(**vars(args))), flush=True)
