"""The options that the inference scripts share; without torch, so that they are read at once."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, NamedTuple

from .. import precision
from ..command_line import Parser
from ..errors import UserError
from ..limits import number
from .defaults import CONDITIONS, FLOW_GUIDANCE, N_AVG, N_MAX, N_MIN, OUTSIDE, RECONSTRUCTION_WEIGHT, SOLVER, SOLVERS

FLOW_OPTIONS = ("n_max", "n_min", "n_avg", "source_guidance")


class Lora(NamedTuple):
    """A file of an adapter, or the folder that it is in, and how much of it."""

    file: Path
    scale: float = 1.0


def read_lora(text: str) -> Lora:
    """FILE, or FILE:SCALE."""
    file, colon, scale = text.rpartition(":")
    if not text or (colon and not file):
        raise argparse.ArgumentTypeError(f"{text!r} names no file: give FILE or FILE:SCALE")
    if not colon or os.path.exists(text):
        return Lora(Path(text))
    try:
        return Lora(Path(file), number("lora_scale")(scale))
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(
            f"{text}: there is no such file, and the scale after the last colon is wrong: {error}"
        ) from None


class ControlNet(NamedTuple):
    """A ControlNet's folder, how much of it, and in which part of the steps, in shares of them."""

    folder: Path
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0


def read_controlnet(text: str) -> ControlNet:
    """FOLDER, FOLDER:SCALE or FOLDER:SCALE:START-END."""
    wrong = f"{text!r}: give FOLDER, FOLDER:SCALE or FOLDER:SCALE:START-END"
    if text and (os.path.exists(text) or ":" not in text):
        return ControlNet(Path(text))
    folder, _, last = text.rpartition(":")
    part = (0.0, 1.0)
    try:
        if "-" in last.lstrip("-") and ":" in folder:
            low, _, high = last.partition("-")
            part = number("control_start")(low), number("control_end")(high)
            folder, _, last = folder.rpartition(":")
        scale = number("control_scale")(last)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{wrong} ({error})") from None
    if part[0] >= part[1]:
        raise argparse.ArgumentTypeError(f"{text}: {low} to {high} are no steps: give the lower share first")
    if not folder:
        raise argparse.ArgumentTypeError(wrong)
    return ControlNet(Path(folder), scale, *part)


class ReferenceFile(NamedTuple):
    """A picture or clip that is shown in a role."""

    role: str
    file: Path


def read_reference(text: str) -> ReferenceFile:
    """ROLE=FILE."""
    role, equals, file = text.partition("=")
    if not (role and equals and file):
        raise argparse.ArgumentTypeError(f"{text}: give ROLE=FILE")
    return ReferenceFile(role, Path(file))


def parser_of(doc: str, *, known: bool = False) -> Parser:
    """A parser with the arguments of every script; `known`: also those of tasks in which a part is given."""
    parser = Parser(description=doc)
    parser.add_argument(
        "--model",
        type=Path,
        default=Path("runs/demo/pipeline"),
        help="pipeline folder (the demo's), or a published model's folder or hub name",
    )
    add_lora(parser)
    parser.add_argument(
        "--motion", type=Path, metavar="FOLDER", help="motion module to put into an image model, which then makes clips"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("output.mp4"), help="several clips get -0, -1 ... in the name"
    )
    parser.add_argument("--steps", type=int, help="denoising steps (default: the model's)")
    parser.add_argument("--solver", choices=SOLVERS, help=f"default: the model's ({SOLVER})")
    parser.add_argument("--guidance", type=float, help="guidance scale; 1 is none (default: the model's)")
    parser.add_argument("--guidance-low", type=float, help="the same of a second expert, at low noise levels (Wan 2.2)")
    parser.add_argument(
        "--guidance-embedded", type=float, help="the scale that a model with an embedding of it is told"
    )
    parser.add_argument("--guidance-rescale", type=float, help="0 to 1: against the washed-out look of large scales")
    parser.add_argument(
        "--guidance-interval",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="noise levels between which to guide (default: the model's)",
    )
    parser.add_argument(
        "--zero-init", type=int, metavar="N", help="the first N steps do not move (rectified flow only)"
    )
    parser.add_argument("--negative-prompt", help="what to steer away from (default: the model's, mostly nothing)")
    parser.add_argument("--seed", type=int, default=0, help="of the first clip; the next has seed + 1, and so on")
    parser.add_argument(
        "--fps",
        type=float,
        help="frames a second, of the file and of what moves in it, where the model was trained to know of rates "
        "(default: the input's, or the model's)",
    )
    parser.add_argument(
        "--motion-strength",
        type=number("motion_strength"),
        metavar="STRENGTH",
        help="how much moves, where the model was trained with model.motion_condition: percent of the frame's diagonal "
        "a second, as a mean over the frame, or in the unit of its training's column (default: as the model likes)",
    )
    parser.add_argument(
        "--large",
        action="store_true",
        help="take sizes and lengths beyond what the model was trained on as they are, whatever they cost",
    )
    parser.add_argument("--device", help="cuda, cpu, ... (default: cuda where there is one)")
    precision.add_argument(parser)
    if known:
        parser.add_argument(
            "--condition",
            choices=CONDITIONS,
            help="how what is given conditions the rest (default: levels or channels if trained so, else "
            "reconstruction)",
        )
        parser.add_argument(
            "--image-noise",
            type=number("image_noise"),
            metavar="LEVEL",
            help="noise in what is given, of which the model is told, where it was trained with such (given.noise): "
            "more leaves it more freedom (default: the least of training)",
        )
        parser.add_argument(
            "--reconstruction-weight", type=float, default=RECONSTRUCTION_WEIGHT, help="default: %(default)s"
        )
    return parser


def add_lora(parser: Parser) -> None:
    """Adds --lora and --lora-2."""
    for option, of in (("--lora", ""), ("--lora-2", ", of Wan 2.2's second network (low noise)")):
        parser.add_argument(
            option,
            type=read_lora,
            action="append",
            default=[],
            metavar="FILE[:SCALE]",
            help=f"LoRA, DoRA, LoHa or LoKr to put in, of any common format{of}; give it again for more",
        )


def loading(args: argparse.Namespace) -> dict[str, Any]:
    """What of the parsed arguments `loading.load_pipeline` takes."""
    names = ("mixed_precision", "lora", "lora_2", "control", "motion")
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def add_length(parser: Parser, frames: str) -> None:
    """Adds --frames, or --seconds."""
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--frames", type=int, help=frames)
    length.add_argument("--seconds", type=float, help="the same in seconds, to the nearest length that it makes")


def add_references(parser: Parser) -> None:
    """Adds --reference, for `references.read_references`."""
    parser.add_argument(
        "--reference",
        type=read_reference,
        action="append",
        default=[],
        metavar="ROLE=FILE",
        help="picture or clip that is shown beside what is made, in a role that the model was trained with; give it "
        "again for more",
    )
    add_reference_noise(parser)
    parser.add_argument(
        "--signal",
        type=read_reference,
        action="append",
        default=[],
        metavar="ROLE=FILE",
        help="the same, of which the role's control signal (edges, ...) is computed first, as in training",
    )
    parser.add_argument(
        "--control",
        type=read_controlnet,
        action="append",
        default=[],
        metavar="FOLDER[:SCALE[:START-END]]",
        help="ControlNet to put in, times SCALE, in the part of the steps between these shares (0-1: in all); its "
        "signal is that of --reference or --signal; give it again for more",
    )


def add_reference_noise(parser: Parser) -> None:
    """Adds --reference-noise."""
    parser.add_argument(
        "--reference-noise",
        type=float,
        metavar="LEVEL",
        help="noise in references whose role has it, of which the model is told (default: the least of training)",
    )


def add_then(parser: Parser) -> None:
    """Adds --then, for `cascade.open_stages`."""
    parser.add_argument(
        "--then",
        type=Path,
        action="append",
        default=[],
        metavar="PIPELINE",
        help="model that makes what is made larger, or gives it more frames (docs/cascades.md); give it again for more",
    )


def add_sizes(parser: Parser, usual: str = "the input's, at most what was trained") -> None:
    """Adds --height and --width, to which what is given is scaled and cropped; usual: what they are without."""
    for side in ("height", "width"):
        parser.add_argument(f"--{side}", type=int, help=f"pixels (default: {usual})")


def add_flow(parser: Parser) -> None:
    """Adds the options of method flow, for `flow_of`."""
    for name, kind, said in (
        ("n_max", int, f"how many of the steps change it, the last ones (default: {N_MAX:.0%} of them)"),
        ("n_min", int, f"how many of these, the last ones, follow --prompt alone (default: {N_MIN})"),
        ("n_avg", int, f"draws of noise of which each step is the mean (default: {N_AVG})"),
        ("source_guidance", float, f"guidance scale of --source; --guidance is of --prompt (default: {FLOW_GUIDANCE})"),
    ):
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=f"method flow: {said}".replace("%", "%%"))


def flow_of(args: argparse.Namespace) -> dict[str, Any] | None:
    """What was said of method flow, for `flow.FlowEdit`; None for another method. Raises UserError."""
    said = {name: getattr(args, name) for name in FLOW_OPTIONS if getattr(args, name) is not None}
    if args.method != "flow" and said:
        raise UserError(
            f"--{next(iter(said)).replace('_', '-')} is of --method flow: --method {args.method} does without"
        )
    if args.method == "flow" and args.strength is not None:
        raise UserError("--strength is of the other methods: give --n-max, the number of steps that change the clip")
    return said if args.method == "flow" else None


def add_clip(parser: Parser) -> None:
    """Adds what every program takes that makes a clip anew, for `sources.open_source`."""
    parser.add_argument("--clip", type=Path, required=True, help="video or picture, of any length and size")
    parser.add_argument("--frames", type=int, help="of the clip, from its start (default: all)")
    parser.add_argument("--window", type=int, help="frames that are made together (default: the model's)")
    add_sizes(parser, "the clip's")


def clip_options(args: argparse.Namespace) -> dict[str, Any]:
    """What of the parsed arguments `sources.open_source` takes."""
    return {name: getattr(args, name) for name in ("frames", "window", "height", "width", "large")}


def add_mask(parser: Parser, *, required: bool = False) -> None:
    """Adds --mask and what says how it is used."""
    parser.add_argument(
        "--mask",
        type=Path,
        required=required,
        help="picture, or video with a frame for each of the clip's, of its size: white where to change",
    )
    parser.add_argument("--grow", type=int, help="pixels by which what is white becomes wider (default: 0)")
    parser.add_argument(
        "--outside",
        choices=OUTSIDE,
        help="what is shown where the mask is black: the clip's own pixels, or what the VAE makes of them, as soft as "
        "what is made and so without a seam (default: clip)",
    )
