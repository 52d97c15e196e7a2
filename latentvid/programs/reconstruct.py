"""Shows what an autoencoder keeps of videos and images: original | reconstruction, with PSNR and SSIM.

    latentvid reconstruct --vae RUN/vae INPUT... --output OUT.mp4

The output's ending chooses the format: mp4, webm, gif or png. Any size and length goes in, as one stream, so that
memory does not grow with the length; what is scaled, cropped or left out is said. `latentvid evaluate-vae` scores many
files.
"""

from pathlib import Path

from .. import precision
from ..command_line import Parser
from ..errors import user_errors
from ..words import counted


@user_errors()
def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("inputs", type=Path, nargs="+", metavar="INPUT", help="videos and images")
    parser.add_argument("--vae", type=Path, required=True, help="folder of the autoencoder")
    parser.add_argument("--output", type=Path, required=True, help="several inputs get -0, -1 ... in the name")
    parser.add_argument("--max-frames", type=int, help="frames of each input, from its start (default: all)")
    precision.add_argument(parser, more="bf16 is some 0.3 dB worse")
    args = parser.parse_args()
    # after the options are read: --help and wrong ones are answered at once
    import torch

    from ..evaluation.pairs.whole_file import reconstruct_file
    from ..models.interchange import load_vae
    from ..pipelines.outputs import check_output, numbered

    check_output(args.output, count=len(args.inputs))
    vae = load_vae(args.vae).to("cuda" if torch.cuda.is_available() else "cpu")
    computed = precision.choose(args.mixed_precision, vae.device)
    print(precision.describe(computed, vae.device), flush=True)
    vae = vae.bfloat16() if computed == "bf16" else vae
    for i, path in enumerate(args.inputs):
        output = numbered(args.output, i, len(args.inputs))
        result = reconstruct_file(vae, path, output, args.max_frames)
        print(
            f"{path}: PSNR {result.psnr:.2f} dB, SSIM {result.ssim:.4f} over "
            f"{counted(result.frames, 'frame')} -> {output}"
        )
        for change in result.changes:
            print(f"  {change}", flush=True)
