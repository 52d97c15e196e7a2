"""The command `latentvid`, and `python -m latentvid`: one name for all programs.

latentvid t2v --prompt "a red 7 moves up"
accelerate launch -m latentvid train-dit base --run.dir runs/mine
"""

from __future__ import annotations

import importlib
import sys
from typing import NamedTuple

from .command_line import nearest


class Command(NamedTuple):
    """Where a program is, `module:function` in this package, and what it does."""

    program: str
    does: str


GROUPS: dict[str, dict[str, Command]] = {
    "Start here": {
        "doctor": Command("programs.doctor:main", "say what this machine can do, and which configuration fits"),
        "configs": Command("programs.configs:main", "list the shipped configurations, print one, or copy them"),
    },
    "Data": {
        "manifest": Command("commands:manifest", "make a manifest of a folder of clips and captions"),
        "curate": Command("commands:curation", "make manifests of raw footage: shots, measures, filters, captions"),
        "copy": Command("programs.copy:main", "copy checkpoints, latents or clips to a bucket (URL), or from one"),
        "encode": Command("programs.encode_latents:main", "encode a manifest into a cache of latents and text states"),
    },
    "Training": {
        "train-vae": Command("programs.train_vae:main", "train the causal video autoencoder"),
        "train-dit": Command("programs.train_dit:main", "train the diffusion transformer, or tune a published model"),
        "distill": Command("programs.distill:main", "distil a pipeline to fewer steps"),
        "preference": Command("commands:preference", "make tables of pairs for preference tuning"),
        "runs": Command("programs.runs:main", "list training runs: state, step, loss, frames a second"),
        "report": Command("report.__main__:main", "make a page about a run, several side by side, or a data set"),
        "export": Command("commands:export", "export a run's checkpoint in diffusers' format"),
    },
    "Generation": {
        "t2v": Command("programs.t2v:main", "text to video"),
        "i2v": Command("programs.i2v:main", "image to video"),
        "extend": Command("programs.extend:main", "go on with a video"),
        "interpolate": Command("programs.interpolate:main", "fill in frames between two pictures, or of a clip"),
        "inpaint": Command("programs.inpaint:main", "paint a part of a video anew"),
        "edit": Command("programs.edit:main", "change what a video shows by a prompt"),
        "style": Command("programs.style:main", "show a video in the look of a picture"),
        "long": Command("programs.long:main", "a long video from a prompt"),
        "upscale": Command("programs.upscale:main", "make a clip larger, or give it more frames"),
        "studio": Command("studio.__main__:main", "the programs above as pages in a browser, with a gallery"),
        "adapters": Command("commands:adapters", "merge or show files of LoRA"),
    },
    "Evaluation": {
        "evaluate": Command("evaluation.__main__:main", "score clips: FID, FVD, CLIP similarity, ..."),
        "compare": Command("commands:compare", "show people pairs of clips, blind, and count their choices"),
        "vbench": Command("evaluation.vbench.__main__:main", "sample and score VBench's prompts"),
        "evaluate-vae": Command("programs.evaluate_vae:main", "score an autoencoder"),
        "reconstruct": Command("programs.reconstruct:main", "show what an autoencoder keeps of a file"),
    },
    "Demo": {
        "digits": Command("commands:digits", "write the demo's clips, images and manifests"),
        "train-text-encoder": Command("programs.train_text_encoder:main", "train the demo's text encoder"),
        "score-demo": Command("commands:score_demo", "score the demo"),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


def help_text() -> str:
    """All commands, by group."""
    width = max(map(len, COMMANDS))
    lines = ["usage: latentvid COMMAND [options]; latentvid COMMAND --help says a command's options"]
    for title, group in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:<{width}}  {command.does}" for name, command in group.items())]
    return "\n".join(lines)


def main() -> None:
    """Runs the command that the first argument names, with the others as its command line."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "help"):
        print(help_text())
        return
    if name == "--version":
        from importlib.metadata import version

        print(f"latentvid {version('latentvid')}")
        return
    if name not in COMMANDS:
        print(f"error: unknown command {name}: {nearest(name, COMMANDS)} (see latentvid --help)", file=sys.stderr)
        raise SystemExit(2)
    module, _, function = COMMANDS[name].program.partition(":")
    sys.argv = [f"latentvid {name}", *rest]
    getattr(importlib.import_module(f"{__package__}.{module}"), function)()


if __name__ == "__main__":
    main()
