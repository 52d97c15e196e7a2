"""Makes videos from prompts.

    latentvid t2v --prompt "a red 7 moves up and to the left" [--output clip.mp4]
    [accelerate launch -m] latentvid t2v --prompts prompts.csv --output FOLDER

Several --prompt make several clips, sampled together. The output's ending chooses the format: mp4, webm, gif, or png
(one frame as it is, more as a contact sheet). --prompts reads a .csv, .jsonl or .parquet with the columns prompt and,
as far as wanted, negative_prompt, seed, frames, height, width, fps, name; a run that was stopped goes on where it was,
and the processes of a launch share the work. With --then the clips go through further models: a cascade.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from ..command_line import Parser
from ..errors import UserError, user_errors
from ..files import check_writable
from ..pipelines import arguments, defaults


def options() -> Parser:
    parser = arguments.parser_of(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", action="append", help="what to show; give it again for more clips")
    what.add_argument("--prompts", type=Path, help="file of prompts; --output is then a folder")
    parser.add_argument("--tokens-per-pack", type=int, help=f"of --prompts (default {defaults.TOKENS_PER_PACK})")
    arguments.add_length(parser, "1 + 4k, by the VAE's stride in time (default: the model's)")
    parser.add_argument("--height", type=int, help="pixels (default: the model's)")
    parser.add_argument("--width", type=int, help="pixels (default: the model's)")
    arguments.add_references(parser)
    arguments.add_then(parser)
    parser.add_argument("--compile", action="store_true", help="compile the network: for runs of several minutes")
    return parser


def parse() -> argparse.Namespace:
    parser = options()
    args = parser.parse_args()
    if args.prompts is None and args.tokens_per_pack:
        parser.error("--tokens-per-pack is of --prompts: several --prompt are one pack")
    if args.prompts is not None and (args.reference or args.signal or args.control):
        parser.error("--reference, --signal and --control are with --prompt: clips of --prompts are made without them")
    if args.prompts is not None and args.then:
        parser.error("--then is with --prompt: clips of --prompts are made by one model (latentvid upscale goes on)")
    args.tokens_per_pack = args.tokens_per_pack or defaults.TOKENS_PER_PACK
    return args


@user_errors()
def main() -> None:
    args = parse()
    # after the options are read: --help and wrong ones are answered at once
    from ..pipelines import command, outputs
    from ..pipelines.loading import load_pipeline
    from ..pipelines.prompts import read_prompts, sample_prompts
    from ..pipelines.references import read_references
    from ..world import process_state

    words = {name: getattr(args, name) for name in ("height", "width", "negative_prompt", "seed")}
    options = {"compiled": args.compile, **arguments.loading(args)}
    if args.prompts is None:
        outputs.check_output(args.output, args.fps, len(args.prompt))
        pipeline = load_pipeline(args.model, args.device, **options)
        fps = args.fps or pipeline.config.fps
        frames = command.legal_frames(pipeline, args.frames, args.seconds, fps)
        command.note_size(pipeline, frames or 1, args.height, args.width)
        command.note_rate(pipeline, fps, args.fps)
        sampling = command.sampling_of(args, pipeline)
        size = frames or pipeline.config.frames, *(words[side] or pipeline.config[side] for side in ("height", "width"))
        shown = read_references(pipeline, args.reference, *size, args.signal)
        cascade = command.cascade_of(args, pipeline, args.prompt, size, fps)
        command.check_held(args, cascade)
        if cascade.stages:
            sampling = replace(sampling, reference_noise=None)
        clips = pipeline(
            args.prompt, num_frames=frames, fps=fps, references=shown, sampling=sampling, **words, output_type="uint8"
        ).frames
        clips, fps = command.refined(args, cascade, clips, args.prompt, fps)
        outputs.write_all(args.output, clips, fps, args.prompt)
        return
    if args.output.suffix.lower() in defaults.ENDINGS:
        raise UserError(f"--output {args.output}: with --prompts give a folder")
    check_writable(args.output, "give --output another folder, or mend this one")
    state = process_state()
    pipeline = load_pipeline(args.model, args.device or state.device, **options)
    words |= {name: getattr(args, name) for name in ("frames", "seconds", "fps", "large")}
    rows = read_prompts(args.prompts, pipeline, **words)
    for fps in sorted({row.fps for row in rows}):
        command.note_rate(pipeline, fps, args.fps)
    sampling, budget = command.sampling_of(args, pipeline), args.tokens_per_pack
    sample_prompts(pipeline, rows, args.output, sampling, state, tokens_per_pack=budget)
