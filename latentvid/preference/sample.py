"""Two clips of every prompt by one model, with different noise, under equal names in two folders."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from ..errors import UserError
from ..files import check_writable
from ..pipelines import arguments, command
from ..pipelines.defaults import ENDINGS
from ..pipelines.loading import load_pipeline
from ..pipelines.prompts import read_prompts, sample_prompts
from ..world import process_state

FOLDERS = "a", "b"


def sample_pairs(args: argparse.Namespace) -> tuple[Path, Path]:
    """Makes DIR/a and DIR/b, as `inference/t2v.py --prompts` makes a folder; goes on where it was stopped.

    The seeds of the second follow those of the first: each is its first clip's plus the number of prompts.
    """
    if args.output.suffix.lower() in ENDINGS:
        raise UserError(f"--output {args.output}: give a folder")
    check_writable(args.output, "give --output another folder, or mend this one")
    state = process_state()
    pipeline = load_pipeline(args.model, args.device or state.device, **arguments.loading(args))
    names = ("height", "width", "negative_prompt", "seed", "frames", "seconds", "fps", "large")
    rows = read_prompts(args.prompts, pipeline, **{name: getattr(args, name) for name in names})
    sampling = command.sampling_of(args, pipeline)
    folders = tuple(args.output / name for name in FOLDERS)
    for number, folder in enumerate(folders):
        own = [replace(row, seed=row.seed + number * len(rows)) for row in rows]
        sample_prompts(pipeline, own, folder, sampling, state, tokens_per_pack=args.tokens_per_pack)
    return folders
