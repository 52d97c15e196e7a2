"""Builds the demo's T5 text encoder and its tokenizer, and saves them as one transformers folder.

latentvid train-text-encoder OUT --captions DATA/train.jsonl
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..command_line import Parser
from ..errors import UserError, user_errors
from ..files import check_writable, follow_umask
from ..limits import number

if TYPE_CHECKING:
    from ..demo.digits import Label


def read_labels(manifest: Path) -> list[Label]:
    """What the demo's manifest says of each training sample."""
    if not manifest.is_file():
        raise UserError(f"manifest {manifest} does not exist: write it with `python -m latentvid.demo.digits`")
    from ..demo.digits import Label

    labels = []
    for place, line in enumerate(manifest.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            labels.append(Label(row["digit"], row["colour"], row["verb"], row["direction"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{manifest} line {place} is no row of the demo's manifest: {error!r}") from None
    if not labels:
        raise UserError(f"{manifest} is empty: write it again with `python -m latentvid.demo.digits`")
    return labels


@user_errors()
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description="Train the demo's small T5 text encoder from nothing.")
    parser.add_argument("out", type=Path, help="folder to write (transformers layout)")
    parser.add_argument("--captions", type=Path, required=True, help="the demo's train.jsonl")
    parser.add_argument("--steps", type=number("train.steps"), default=200, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    args = parser.parse_args(argv)
    # after the options are read: --help and wrong ones are answered at once
    import torch
    from transformers.utils import logging as transformers_logging

    from ..demo.text_encoder import paraphrase_match, train_text_encoder

    labels = read_labels(args.captions)
    check_writable(args.out)
    torch.set_num_threads(1)  # matrices this small are slower on several, much slower where cores are shared
    encoder = train_text_encoder(labels, steps=args.steps, seed=args.seed)
    transformers_logging.disable_progress_bar()
    encoder.encoder.save_pretrained(args.out)
    encoder.tokenizer.save_pretrained(args.out)
    follow_umask(args.out)
    match = paraphrase_match(encoder, labels[:500], args.seed)
    size = sum(p.numel() for p in encoder.encoder.parameters()) / 1e6
    print(f"{args.out}: T5 of {size:.2f}M parameters, {len(encoder.tokenizer)} tokens, paraphrases matched {match:.3f}")
