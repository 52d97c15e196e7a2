"""Scores an autoencoder on videos and images: PSNR, SSIM, LPIPS, rFVD, and the quality of its latents.

    latentvid evaluate-vae --vae RUN/vae FOLDER... --out DIR --lpips WEIGHTS --i3d WEIGHTS [--size 256x256]

DIR gets scores.json, scores.md (a table), latents.svg, sheet.png and clips/ (original | reconstruction | difference).
Files that cannot be used are named and left out. Any VAE that training takes can be scored, diffusers' too.
"""

import argparse
import re
from pathlib import Path

from .. import precision
from ..command_line import Parser
from ..errors import user_errors
from ..limits import number


def size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r}: give HEIGHTxWIDTH, or one number for a square")
    side = number("size")
    return side(found[1]), side(found[2] or found[1])


@user_errors()
def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("inputs", type=Path, nargs="+", metavar="INPUT", help="videos, images, folders of them")
    parser.add_argument("--vae", type=Path, required=True, help="folder of the autoencoder")
    parser.add_argument("--out", type=Path, required=True, help="folder for the scores")
    parser.add_argument("--lpips", type=Path, help="LPIPS weights: a file, or a folder with alex or vgg.safetensors")
    parser.add_argument("--lpips-net", choices=("alex", "vgg"), default="alex", help="default alex")
    parser.add_argument("--i3d", type=Path, help="I3D weights, for rFVD")
    parser.add_argument("--frames", type=int, default=17, help="of a clip (default 17)")
    parser.add_argument("--size", type=size, help="HEIGHTxWIDTH, scaled and cropped (default: each file's own)")
    parser.add_argument("--max-clips", type=int, help="shared among the files (default: all)")
    precision.add_argument(parser, more="scores that are to be compared need the same")
    args = parser.parse_args()
    # after the options are read: --help and wrong ones are answered at once
    from ..evaluation.vae.scores import VaeScoresConfig, score_vae, table

    print(table(score_vae(VaeScoresConfig(**vars(args)))), flush=True)
