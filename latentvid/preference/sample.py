"""Several clips of every prompt by one model, with different noise, under equal names in as many folders."""

from __future__ import annotations

import argparse
import string
from dataclasses import replace
from pathlib import Path

from ..errors import UserError
from ..files import check_writable
from ..pipelines import arguments, command
from ..pipelines.defaults import ENDINGS
from ..pipelines.loading import load_pipeline
from ..pipelines.prompts import read_prompts, sample_prompts
from ..world import process_state

FOLDERS = string.ascii_lowercase


def sample_pairs(args: argparse.Namespace) -> tuple[Path, ...]:
    """Makes DIR/a, DIR/b, ..., as `inference/t2v.py --prompts` makes a folder; goes on where it was stopped.

    The seeds of each follow those of the one before: a clip's is that before plus the number of prompts. Raises
    UserError for more than there are letters.
    """
    if args.clips > len(FOLDERS):
        raise UserError(f"--clips {args.clips}: there are folders for {len(FOLDERS)} of a prompt")
    if args.output.suffix.lower() in ENDINGS:
        raise UserError(f"--output {args.output}: give a folder")
    check_writable(args.output, "give --output another folder, or mend this one")
    state = process_state()
    pipeline = load_pipeline(args.model, args.device or state.device, **arguments.loading(args))
    names = ("height", "width", "negative_prompt", "seed", "frames", "seconds", "fps", "large")
    rows = read_prompts(args.prompts, pipeline, **{name: getattr(args, name) for name in names})
    sampling = command.sampling_of(args, pipeline)
    folders = tuple(args.output / name for name in FOLDERS[: args.clips])
    for number, folder in enumerate(folders):
        own = [replace(row, seed=row.seed + number * len(rows)) for row in rows]
        sample_prompts(pipeline, own, folder, sampling, state, tokens_per_pack=args.tokens_per_pack)
    return folders
