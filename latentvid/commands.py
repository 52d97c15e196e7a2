"""The programs among the library's modules (`python -m latentvid.data.manifest` and so on): their options.

torch, and what needs it, is imported once the options are read: --help and wrong ones are answered at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from . import precision
from .command_line import Parser
from .errors import UserError, user_errors
from .limits import number
from .pipelines import arguments
from .pipelines.defaults import TOKENS_PER_PACK


@user_errors()
def manifest() -> None:
    parser = Parser(
        prog="python -m latentvid.data.manifest",
        description="Makes a manifest, a table of clips and captions, of a folder.",
    )
    parser.add_argument("folder", help="folder of videos and images, each with its caption in NAME.txt beside it")
    parser.add_argument("output", help="manifest to write: .jsonl, .csv, .tsv or .parquet")
    parser.add_argument(
        "--caption", action="append", default=[], metavar="TEXT",
        help="of files without a NAME.txt; give it again for more captions, of which each draw takes one",
    )  # fmt: skip
    args = parser.parse_args()
    from .data.manifest.manifest import check_output, scan_folder, write_manifest

    check_output(args.output)
    found = scan_folder(args.folder, captions=args.caption)
    write_manifest(args.output, found.samples)
    print(found.summary())
    print(f"wrote {args.output}")


@user_errors()
def curation() -> None:
    parser = Parser(
        prog="python -m latentvid.curation",
        description="Makes manifests for training of raw footage (docs/curation.md).",
    )
    parser.add_argument("source", help="folder of footage, or a table of files and captions (.jsonl, .csv, .parquet)")
    parser.add_argument("out", help="folder to write; the same command goes on with what is there")
    parser.add_argument("--config", type=Path, help="curation.yaml; what it does not say is as docs/curation.md has it")
    parser.add_argument("--workers", type=number("workers"), help="processes (default: one a processor)")
    args = parser.parse_args()
    from .config.parsing import load_config
    from .curation.engine import running
    from .curation.run import curate
    from .curation.settings import Curation

    settings = load_config(Curation, args.config)
    summary = curate(settings, args.source, args.out, lambda: running(args.workers or os.cpu_count() or 1))
    print(summary)
    if not summary.train["segments"]:
        raise UserError(f"nothing stays to train on: mend what is said above, or the filters of {args.config}")
    if not summary.validation["segments"]:
        print("no file is held out: raise split.validation, or give more files")
    print(f"wrote {args.out}; a page about it: python -m latentvid.report {args.out}")


@user_errors()
def digits() -> None:
    parser = Parser(
        prog="python -m latentvid.demo.digits", description="Writes the demo's digit clips, images and manifests."
    )
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--train", type=number("digits.train"), default=3000, help="samples (default %(default)s)")
    parser.add_argument("--val", type=number("digits.val"), default=320, help="held-out ones (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    parser.add_argument(
        "--scale", type=int, choices=(1, 2, 4), default=1, help="times as large, with edges as steep (default 1)"
    )
    args = parser.parse_args()
    from .demo.digits import write_dataset

    write_dataset(args.out, train=args.train, val=args.val, seed=args.seed, scale=args.scale)


@user_errors()
def glyph() -> None:
    parser = Parser(
        prog="python -m latentvid.demo.glyph",
        description="Writes a few clips of a drawn glyph that is no digit, under a rare word, and prompts of digits "
        "(docs/dreambooth.md).",
    )
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--clips", type=number("pairs"), default=5, help="default %(default)s")
    parser.add_argument("--word", default="zorp", help="what it is called (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    args = parser.parse_args()
    from .demo.glyph import write_subject

    write_subject(args.out, args.word, args.clips, args.seed)


@user_errors()
def looks() -> None:
    parser = Parser(
        prog="python -m latentvid.demo.looks",
        description="Writes clips of digits drawn in other ways, each with a picture that shows its look.",
    )
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--looks", nargs="+", default=["striped"], help="their names (default %(default)s)")
    parser.add_argument("--clips", type=number("pairs"), default=3000, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    args = parser.parse_args()
    from .demo.looks import write_looks

    write_looks(args.out, args.looks, args.clips, args.seed)


@user_errors()
def export() -> None:
    parser = Parser(
        prog="python -m latentvid.training.export",
        description="Exports a run's checkpoint in diffusers' format, whichever strategy wrote it.",
    )
    parser.add_argument("run", type=Path, help="the run's folder (run.dir)")
    parser.add_argument("out", type=Path, help="folder to make")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, help="checkpoint to take (default: the newest whole one)")
    which.add_argument("--best", action="store_true", help="the checkpoint and weights that best.json names")
    parser.add_argument("--raw", action="store_true", help="the optimiser's weights instead of their average")
    parser.add_argument("--license", help="of a pipeline's weights, for its model card, such as apache-2.0")
    parser.add_argument("--push-to-hub", metavar="OWNER/NAME", help="upload the pipeline to this repository too")
    args = parser.parse_args()
    if args.best and args.raw:
        raise UserError("--raw and --best contradict each other: best.json says which weights were the best")
    from .training.export import export_run
    from .training.stages.table import STAGES

    checkpoint = export_run(args.run, args.out, STAGES, args.step, args.raw, args.best)
    print(f"wrote {args.out} from {checkpoint.name}")
    if args.license is None and args.push_to_hub is None:
        return
    from .pipelines.card import license_of, upload
    from .pipelines.folder import INDEX

    if not (args.out / INDEX).is_file():
        raise UserError(f"{args.out} is no pipeline, and has no model card: --license and --push-to-hub are of those")
    if args.license is not None:
        license_of(args.out, args.license)
    if args.push_to_hub is not None:
        print(upload(args.out, args.push_to_hub))


@user_errors()
def adapters() -> None:
    prog = "python -m latentvid.adapters"
    what = {"merge": "a model with adapters in its weights", "show": "what a file of an adapter holds"}
    if sys.argv[1:2] == ["merge"]:
        _merge_adapters(Parser(prog=f"{prog} merge", description=f"Writes {what['merge']}, as a folder of its own."))
    elif sys.argv[1:2] == ["show"]:
        _show_adapter(Parser(prog=f"{prog} show", description=f"Prints {what['show']}."))
    else:  # --help, and what is wrong
        parser = Parser(prog=prog, description="Files of LoRA, DoRA, LoHa and LoKr (docs/adapters.md).")
        choices = ", ".join(f"{name}: {text}" for name, text in what.items())
        parser.add_argument("command", choices=tuple(what), help=f"{choices}; its options: {prog} COMMAND --help")
        parser.parse_args()


def _merge_adapters(parser: Parser) -> None:
    from .pipelines.arguments import add_lora

    parser.add_argument("model", metavar="MODEL_FOLDER", help="pipeline folder, or a published model's or hub name")
    add_lora(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16", "fp16"), help="type of the merged weights (default: as they are stored)"
    )
    args = parser.parse_args(sys.argv[2:])
    if not args.lora and not args.lora_2:
        parser.error("--lora is required: FILE, or FILE:SCALE")
    from .adapters import merge_folder

    merge_folder(args.model, args.out, args.lora, args.lora_2, args.dtype)
    print(f"wrote {args.out}")


def _show_adapter(parser: Parser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the file, or the folder that it is in")
    args = parser.parse_args(sys.argv[2:])
    from .models.adapters.facts import describe

    print(describe(args.file))


@user_errors()
def score_demo() -> None:
    # what is not given is left to DemoConfig
    parser = Parser(
        prog="python -m latentvid.demo.scoring",
        description="Scores the demo: what its autoencoder keeps, and whether its clips show what their prompts say.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the demo, such as runs/demo")
    parser.add_argument("--prompts", type=int, help="clips of seen pairs (default 280)")
    parser.add_argument("--heldout", type=int, help="clips of held-out pairs (default 140)")
    parser.add_argument("--seed", type=int, help="of prompts and noise (default 0)")
    parser.add_argument("--chunk", type=int, help="clips sampled together (default 28)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the pipeline's)")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the pipeline's)")
    precision.add_argument(parser)
    args = parser.parse_args()
    from .demo.scores import table
    from .demo.scoring import DemoConfig, run_demo

    scores = run_demo(DemoConfig(**vars(args)))
    if scores is not None:
        print(table(scores), flush=True)


@user_errors()
def judge() -> None:
    parser = Parser(prog="python -m latentvid.demo.judge", description="Trains the judge of digit clips anew.")
    parser.add_argument(
        "--train", type=Path, nargs="?", const=Path(), required=True, metavar="FILE",
        help="write the weights here (default: over the shipped ones)",
    )  # fmt: skip
    args = parser.parse_args()
    import torch

    from .demo.judge import WEIGHTS, train

    torch.set_num_threads(1)  # the same sums, so the same file, whatever the machine's load
    file = WEIGHTS if args.train == Path() else args.train
    print(f"{file}: {train(file):.4f} of held-out images, degraded, read right")


@user_errors()
def compare() -> None:
    parser = Parser(
        prog="python -m latentvid.evaluation.compare",
        description="Shows people the clips of two folders in pairs, blind and side by side, and counts what they "
        "prefer (docs/compare.md).",
    )
    parser.add_argument("paths", nargs="*", type=Path, metavar="A B | CHOICES", help="two folders; or files to count")
    parser.add_argument("--out", type=Path, help="folder of the page; or, with --count, a file for the results")
    parser.add_argument("--questions", nargs="+", metavar="TEXT", help="default: which looks better; with prompts also "
                        "which follows the prompt better")  # fmt: skip
    parser.add_argument("--pairs", type=int, help="how many to show, drawn from the seed (default: all)")
    parser.add_argument("--seed", type=int, help="of the order and the sides (default 0)")
    parser.add_argument("--attention", type=int, metavar="K", help="pairs more that check raters (default 0): the same "
                        "clip twice, or a clip beside noise; counted apart")  # fmt: skip
    parser.add_argument("--count", type=Path, metavar="DIR", help="count choices of the page in DIR")
    args = parser.parse_args()
    given = {"questions": args.questions, "pairs": args.pairs, "seed": args.seed, "checks": args.attention}
    given = {name: value for name, value in given.items() if value is not None}
    if args.count is None and (len(args.paths) != 2 or args.out is None):
        raise UserError("give two folders and --out DIR (or --count DIR and files of choices)")
    if args.count is not None and given:
        name = next(iter(given)).replace("checks", "attention")
        raise UserError(f"--{name} is for making a page: leave it out with --count")
    if args.count is not None and not args.paths:
        raise UserError("--count DIR: give the files of choices too (choices-NAME.json)")
    from .evaluation.compare import count_choices, make_page
    from .evaluation.preference.key import KEY, PAGE

    if args.count is not None:
        print(count_choices(args.count, args.paths, args.out))
        return
    key = make_page(*args.paths, args.out, **given)
    print(f"{args.out / PAGE}: {len(key.pairs)} pairs, page {key.page}; keep {args.out / KEY} from the raters")


def preference() -> None:
    """The commands of latentvid.preference, by the first argument."""
    made = {"sample": _sample_pairs, "label": _label_pairs, "choices": _pairs_of_choices}
    parser = Parser(
        prog="python -m latentvid.preference",
        description="Makes tables of pairs for preference tuning (docs/preference.md). --help after a command says its "
        "options.",
    )
    parser.add_argument(
        "command",
        choices=made,
        help="sample: several clips of every prompt by a model; label: pairs of folders' clips by scores; choices: "
        "pairs by what people chose on a page of latentvid.evaluation.compare",
    )
    found = parser.parse_args(sys.argv[1:2])
    made[found.command](sys.argv[2:])


@user_errors()
def _sample_pairs(given: list[str]) -> None:
    parser = arguments.parser_of("Makes clips of every prompt, with different noise, in DIR/a, DIR/b, ...")
    parser.prog = "python -m latentvid.preference sample"
    parser.add_argument("--prompts", type=Path, required=True, help="file of prompts, as inference/t2v.py takes it")
    parser.add_argument("--clips", type=int, default=2, help="of each prompt (default: %(default)s)")
    parser.add_argument("--tokens-per-pack", type=int, default=TOKENS_PER_PACK, help="default: %(default)s")
    arguments.add_length(parser, "1 + 4k, by the VAE's stride in time (default: the model's)")
    parser.add_argument("--height", type=int, help="pixels (default: the model's)")
    parser.add_argument("--width", type=int, help="pixels (default: the model's)")
    parser.set_defaults(output=Path("pairs"))
    args = parser.parse_args(given)
    from .preference.sample import sample_pairs

    sample_pairs(args)


@user_errors()
def _label_pairs(given: list[str]) -> None:
    parser = Parser(
        prog="python -m latentvid.preference label",
        description="Writes pairs of equally named clips of two folders or more: the best by scores, and the worst; "
        "ties are left out.",
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="folders of clips of the same names and "
                        "prompts")  # fmt: skip
    parser.add_argument("--score", action="append", required=True, metavar="NAME", help="a score of "
                        "latentvid.evaluation of single clips, or MODULE:NAME; again for more: they decide where those "
                        "before are equal")  # fmt: skip
    parser.add_argument("--weights", type=Path, metavar="DIR", help="folder of the scores' networks")
    parser.add_argument("--device", help="cuda, cpu, ... (default: cuda where there is one)")
    parser.add_argument("--out", type=Path, required=True, help="table of pairs to write")
    args = parser.parse_args(given)
    from .preference.label import by_scores, check_table
    from .world import usable_device

    if len(args.folders) < 2:
        parser.error("give two folders or more")
    check_table(args.out)
    device = usable_device(args.device)
    print(by_scores(args.folders, args.score, args.weights, device).write(args.out))


@user_errors()
def _pairs_of_choices(given: list[str]) -> None:
    parser = Parser(
        prog="python -m latentvid.preference choices",
        description="Writes the pairs of a page of latentvid.evaluation.compare, the clip that most raters chose "
        "first; ties are left out.",
    )
    parser.add_argument("page", type=Path, metavar="DIR", help="folder of the page, with its key.json")
    parser.add_argument("files", type=Path, nargs="+", metavar="CHOICES", help="files of choices that raters sent back")
    parser.add_argument("--question", help="which of the page's questions (default: its only one)")
    parser.add_argument("--out", type=Path, required=True, help="table of pairs to write")
    args = parser.parse_args(given)
    from .preference.label import by_choices, check_table

    check_table(args.out)
    print(by_choices(args.page, args.files, args.question).write(args.out))
