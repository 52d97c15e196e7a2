"""A program's fields as Gradio's components, and what they show as text."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from html import escape
from itertools import groupby
from typing import Any

from ..progress import clock
from .fields import CHOOSERS, MOST_FILES, MOST_TEXT, Field
from .jobs import State
from .limits import ENDINGS
from .tabs import PICTURES

SHORT = ("flag", "choice", "number", "whole", "numbers")  # several of them in a row
UPLOAD = 190  # pixels: its label may have two lines on a phone
TALL = ("prompt", "negative_prompt", "source", "remove", "local_prompt")


def components(field: Field, lists: Mapping[str, Sequence[str]], place: str) -> list[Any]:
    """The components of a field, `field.parts` of them; the first is the page's element PLACE-NAME."""
    import gradio as gr

    own = f"{place}-{field.name}"
    words = {"label": field.label + " (required)" * field.required, "info": field.help or None, "elem_id": own}
    if field.kind in SHORT:
        words["min_width"] = 200
    if field.kind == "flag":
        return [gr.Checkbox(value=bool(field.default), **words)]
    if field.kind == "choice":
        return [gr.Dropdown(["", *field.choices], value=field.default or "", **words)]
    if field.kind in ("number", "whole"):
        # gr.Number would show 0 where nothing is said
        return [gr.Textbox(value="" if field.default is None else f"{field.default}", max_lines=1, **words)]
    if field.kind == "upload":
        return [_upload(field, words["label"], own)]
    if field.kind == "shown":
        files = gr.File(
            label=field.label,
            file_count="multiple",
            file_types=list(ENDINGS),
            type="filepath",
            height=UPLOAD,
            elem_id=own,
        )
        roles = gr.Textbox(label=f"{field.label}: roles", info=field.help, placeholder="ROLE, in the files' order")
        return [files, roles]
    if field.kind == "chosen":
        names = list(lists[CHOOSERS[field.name]])
        if not field.many:
            empty = [] if field.name == "model" else [""]
            return [gr.Dropdown([*empty, *names], value=(empty + names or [None])[0], **words)]
        chosen = gr.Dropdown(names, value=[], multiselect=True, max_choices=MOST_FILES, **words)
        how = field.hint or "nothing"
        return [
            chosen,
            gr.Textbox(label=f"{field.label}: {how}", placeholder="in the same order", visible=bool(field.hint)),
        ]
    lines = 3 if field.name in TALL else 1
    return [gr.Textbox(value=field.default or "", lines=lines, max_length=MOST_TEXT, placeholder=field.hint, **words)]


def rows(fields: Sequence[Field], lists: Mapping[str, Sequence[str]], place: str) -> dict[str, list[Any]]:
    """The components of fields, by the field's name, laid out: short ones beside each other."""
    import gradio as gr

    found: dict[str, list[Any]] = {}
    for short, group in groupby(fields, key=lambda field: field.kind in SHORT):
        with gr.Row() if short else nullcontext():
            found |= {field.name: components(field, lists, place) for field in group}
    return found


def _upload(field: Field, label: str, own: str) -> Any:
    import gradio as gr

    if field.name in PICTURES:
        # image_mode None: the file as it was uploaded, which Gradio would else decode and encode again
        return gr.Image(label=f"{label}: {field.help}", type="filepath", image_mode=None,
                        sources=["upload", "clipboard"], height=260, elem_id=own)  # fmt: skip
    kinds = list(ENDINGS)
    return gr.File(label=f"{label}: {field.help}", file_types=kinds, type="filepath", height=UPLOAD, elem_id=own)


def progress(state: State | None, made: str = "") -> str:
    """HTML of how far a program is. All text is escaped: programs repeat prompts and names of files."""
    if state is None:
        return ""
    took = clock(state.seconds)
    if state.status is None:
        share = f' value="{state.done / state.of:.4f}"' if state.of else ""
        left = f", {state.left} left" if state.of and "?" not in state.left else ""
        parts = f" {state.done} of {state.of}" if state.of else ""
        head = f"{state.what or 'working'}{parts}, {took} so far{left}"
        bar = f'<progress max="1"{share} aria-label="progress"></progress>'
    else:
        ends = {0: f"made in {took}{f': {made}' if made else ''}", 130: f"stopped after {took}"}
        head, bar = ends.get(state.status, f"not made (after {took})"), ""
    lines = "".join(
        f'<div class="said{" wrong" * line.startswith("error:")}">{escape(line)}</div>' for line in state.lines
    )
    return f'<div class="lv-progress"><b>{escape(head)}</b>{bar}{lines}</div>'


def refused(text: str) -> str:
    """HTML of a message about what was asked for."""
    return f'<div class="lv-progress"><div class="said wrong">error: {escape(text)}</div></div>'


def as_command(words: Sequence[str]) -> str:
    """A program's words as a line for a shell."""
    return shlex.join(["latentvid", *words])
