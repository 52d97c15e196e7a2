"""Captions of segments: those that are there, a template, or what a vision-language model says."""

from __future__ import annotations

import os
import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..data.access.files import exists, inside
from ..data.manifest.captions import is_garbage, one_line, read_caption
from ..data.storage import patiently
from ..errors import UserError, brief
from ..places import has_credentials, name_of
from .footage import File
from .networks import looked_at
from .settings import Captions


def sidecar(file: File) -> str | None:
    """The text of NAME.txt beside a file; None where there is none, and inside shards, whose tables have captions.

    Raises ClipError where it is no caption, and StorageError.
    """
    beside = f"{os.path.splitext(file.path)[0]}.txt"
    if file.texts is not None:
        there = name_of(beside) in file.texts
    else:
        there = inside(file.path) is None and not has_credentials(file.path) and exists(beside)
    return patiently(lambda: read_caption(beside), beside, believed=True) if there else None


def check_template(template: str, columns: Sequence[str]) -> None:
    """Raises UserError where it has what is no column, or nothing that is."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"captions.template={template!r}: {error}: write columns as {{stem}}") from None
    for _, name, _, conversion in parts:
        if name is not None and (name not in columns or conversion):
            raise UserError(f"captions.template: {{{name}}} is no column: there are {', '.join(sorted(columns))}")


def from_template(template: str, row: Mapping[str, Any]) -> str | None:
    """None where the row lacks one of its columns."""
    names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    if any(row.get(name) is None for name in names):
        return None
    try:
        text = one_line(template.format(**{name: row[name] for name in names}))
    except (ValueError, TypeError) as error:
        raise UserError(f"captions.template={template!r}: {error}") from None
    return None if not text or is_garbage(text) else text


class Describer:
    """A vision-language model of transformers (`AutoModelForImageTextToText`) with its processor, on a GPU where there
    is one. It answers greedily: the same frames get the same words."""

    def __init__(self, settings: Captions) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.settings = settings
        try:
            self.processor = AutoProcessor.from_pretrained(settings.model)
            self.model = AutoModelForImageTextToText.from_pretrained(settings.model, dtype="auto")
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise UserError(
                f"captions.model={settings.model} cannot be loaded as a vision-language model: {brief(error, 300)}"
            ) from error
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model.eval().requires_grad_(False).to(self.device)

    def __call__(self, unit: Mapping[str, Any]) -> list[str | None]:
        """Of segments of a file; None where it said nothing."""
        clips = [looked_at(unit["file"], each, self.settings.frames) for each in unit["segments"]]
        size = self.settings.batch
        said = [text for n in range(0, len(clips), size) for text in self._describe(clips[n : n + size])]
        return [None if not (text := one_line(each)) or is_garbage(text) else text for each in said]

    @torch.no_grad()
    def _describe(self, clips: Sequence[np.ndarray]) -> list[str]:
        pictures = [[Image.fromarray(frame) for frame in clip] for clip in clips]
        inputs = self._inputs(pictures).to(self.device)
        made = self.model.generate(**inputs, max_new_tokens=self.settings.max_tokens, do_sample=False, num_beams=1)
        begin = inputs["input_ids"].shape[1] if self._repeats(inputs, made) else 0
        return self.processor.batch_decode(made[:, begin:], skip_special_tokens=True)

    def _inputs(self, pictures: Sequence[Sequence[Image.Image]]) -> Any:
        prompt = self.settings.prompt
        if getattr(self.processor, "chat_template", None):
            asked = [
                [
                    {
                        "role": "user",
                        "content": [*({"type": "image", "image": p} for p in clip), {"type": "text", "text": prompt}],
                    }
                ]
                for clip in pictures
            ]
            return self.processor.apply_chat_template(
                asked, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
                processor_kwargs={"padding": True, "padding_side": "left"},
            )  # fmt: skip
        # models without a conversation (BLIP) see one picture: the middle one
        middle = [clip[len(clip) // 2] for clip in pictures]
        return self.processor(images=middle, text=[prompt] * len(middle), return_tensors="pt", padding=True)

    @staticmethod
    def _repeats(inputs: Any, made: torch.Tensor) -> bool:
        """Whether what was made begins with what was asked, as decoders' does."""
        asked = inputs["input_ids"]
        return made.shape[1] >= asked.shape[1] and bool((made[:, : asked.shape[1]] == asked).all())


def caption_of(
    row: Mapping[str, Any], settings: Captions, given: Sequence[str] | None, beside: str | None, said: str | None
) -> list[str] | None:
    """The captions of a segment, from the first source that has some."""
    for source in settings.sources:
        found: Any = None
        if source == "manifest":
            found = list(given) if given else None
        elif source == "sidecar":
            found = None if beside is None else [beside]
        elif source == "model":
            found = None if said is None else [said]
        elif settings.template is not None:
            text = from_template(settings.template, row)
            found = None if text is None else [text]
        if found:
            return found
    return None
