"""Makes a video from a prompt.

    python inference/t2v.py --prompt "a red 7 moves up and to the left" [--output clip.mp4]

Several --prompt make several clips, sampled together. The output's ending chooses the format: mp4, gif, or png (one
frame as it is, more as a contact sheet).
"""

import argparse
from pathlib import Path

from latentvid.data.writing import write_video
from latentvid.errors import UserError, user_errors
from latentvid.pipelines.loading import load_pipeline

ENDINGS = (".mp4", ".gif", ".png")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", action="append", required=True, help="what to show; give it again for more clips")
    parser.add_argument("--model", type=Path, default=Path("runs/demo/pipeline"), help="pipeline folder (the demo's)")
    parser.add_argument(
        "--output", type=Path, default=Path("output.mp4"), help="several clips get -0, -1 ... in the name"
    )
    parser.add_argument("--frames", type=int, help="1 + 4k, by the VAE's stride in time (default: the model's)")
    parser.add_argument("--height", type=int, help="pixels (default: the model's)")
    parser.add_argument("--width", type=int, help="pixels (default: the model's)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the model's)")
    parser.add_argument("--guidance", type=float, help="guidance scale; 1 is none (default: the model's)")
    parser.add_argument("--negative-prompt", default="", help="what to steer away from")
    parser.add_argument("--seed", type=int, default=0, help="of the first clip; the next has seed + 1, and so on")
    parser.add_argument("--fps", type=float, help="frames a second of the file (default: the model's)")
    parser.add_argument("--device", help="cuda, cpu, ... (default: cuda where there is one)")
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.output.suffix.lower() not in ENDINGS:
        raise UserError(f"--output {args.output}: the name must end in {', '.join(ENDINGS)}")
    pipeline = load_pipeline(args.model, args.device)
    names = ("frames", "height", "width", "steps", "guidance", "negative_prompt", "seed")
    result = pipeline(args.prompt, **{name: getattr(args, name) for name in names})
    for i, clip in enumerate(result.frames):
        stem = args.output.stem if len(result.frames) == 1 else f"{args.output.stem}-{i}"
        path = args.output.with_name(stem + args.output.suffix)
        write_video(path, clip, result.fps if args.fps is None else args.fps)
        print(f"{path}: {args.prompt[i]}", flush=True)


if __name__ == "__main__":
    with user_errors():
        main()
