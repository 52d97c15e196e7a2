"""VBench's lists of prompts, and which clips in a folder are of which prompt."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import UserError
from ...files import read_json

SEEDS = 5  # clips of a prompt that VBench's protocol asks for
_FORBIDDEN = re.compile(r"[/\\]")
_NUMBERED = re.compile(r"(?P<prompt>.+)-(?P<number>\d{1,9})")


@dataclass(frozen=True)
class Prompt:
    """dimensions: for which it is meant; empty where the list does not say."""

    text: str
    dimensions: tuple[str, ...] = ()


def read_prompts(path: Path) -> list[Prompt]:
    """Of VBench_full_info.json (a list of objects with "prompt_en" and "dimension"), or of a text of one prompt a
    line, as in VBench's prompts/: in prompts_per_dimension/ the file's name is the dimension.

    Raises UserError for a file that is neither, or is empty.
    """
    if path.suffix.lower() == ".json":
        rows = read_json(path)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UserError(f"{path} is no list of prompts: give VBench_full_info.json, or a text of one prompt a line")
        found = []
        for number, row in enumerate(rows, 1):
            text, dimensions = row.get("prompt_en"), row.get("dimension", [])
            if not isinstance(text, str) or not isinstance(dimensions, list) or not all(
                isinstance(name, str) for name in dimensions
            ):  # fmt: skip
                raise UserError(f'{path}, entry {number}: give "prompt_en", a text, and "dimension", a list of names')
            found.append(Prompt(text, tuple(dimensions)))
    else:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read ({error}): give a list of VBench's prompts") from error
        named = (path.stem,) if path.parent.name == "prompts_per_dimension" else ()
        found = [Prompt(line.strip(), named) for line in lines if line.strip()]
    if not found:
        raise UserError(f"{path} holds no prompt")
    return found


def table_of(prompts: Sequence[Prompt], seeds: int = SEEDS) -> str:
    """Lines of JSON that `inference/t2v.py --prompts` takes: each prompt once, with seeds 0 to `seeds` - 1, and the
    names that VBench expects (PROMPT-NUMBER)."""
    texts = dict.fromkeys(prompt.text for prompt in prompts)
    rows = [{"prompt": text, "seed": seed, "name": name_of(text, seed)} for text in texts for seed in range(seeds)]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def name_of(text: str, number: int) -> str:
    """What VBench calls a clip, but for characters that a file's name cannot have."""
    return f"{_FORBIDDEN.sub('_', text)}-{number}"


def clips_of(prompts: Sequence[Prompt], names: Mapping[str, Path], captions: Mapping[str, str]) -> dict[str, list[str]]:
    """Names of the clips of each prompt's text, by their captions, or, without, by names as `name_of` has them.

    Raises UserError where there is no clip of any.
    """
    texts = {prompt.text for prompt in prompts}
    by_name = {name_of(text, 0)[:-2]: text for text in texts}
    found: dict[str, list[str]] = {}
    for name in names:
        numbered = _NUMBERED.fullmatch(os.path.splitext(os.path.basename(name))[0])
        text = captions.get(name) or (by_name.get(numbered["prompt"]) if numbered else None)
        if text in texts:
            found.setdefault(text, []).append(name)
    if not found:
        raise UserError(
            f"none of the {len(names)} clips is of a prompt of the list, such as {next(iter(texts))!r}: their names "
            "are PROMPT-0.mp4 to PROMPT-4.mp4, or results.jsonl says their prompts"
        )
    return found
