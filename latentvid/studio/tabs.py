"""The studio's tabs: each is a program, a few of whose options are seen at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from ..command_line import Parser
from ..programs import edit, extend, i2v, inpaint, interpolate, long, style, t2v, upscale
from .fields import Field, fields_of

PICTURES = ("image", "first", "last", "style")  # options that take a picture and no video
NO_FIELDS = ("output",)  # the gallery names what is made


@dataclass(frozen=True)
class Tab:
    """program: its name as a command. options: what makes its parser. main: the options that are seen at once, by
    name, below the model; the others are in "More options". without: those that have no place in a page, which makes
    one clip at a time. film: what it makes is a video, also where it has one frame."""

    title: str
    program: str
    does: str
    options: Callable[[], Parser]
    main: tuple[str, ...]
    without: tuple[str, ...] = ()
    film: bool = False

    @cached_property
    def fields(self) -> list[Field]:
        """Those of `main` first, in its order."""
        found = {field.name: field for field in fields_of(self.options(), (*NO_FIELDS, *self.without))}
        first = [found.pop(name) for name in ("model", *self.main)]
        return [*first, *found.values()]


TABS = (
    Tab(
        "Text to video",
        "t2v",
        "A video from a prompt.",
        t2v.options,
        ("prompt", "negative_prompt", "seed", "frames", "steps", "guidance"),
        ("prompts", "tokens_per_pack"),  # of files of prompts
    ),
    Tab("Image to video", "i2v", "A video that begins with a picture.", i2v.options, ("image", "prompt", "seed")),
    Tab(
        "Long video",
        "long",
        "Seconds or minutes from a prompt, written as they are made.",
        long.options,
        ("prompt", "seconds", "negative_prompt", "seed", "order", "local_prompt"),
        ("tokens_per_pack",),
        film=True,
    ),
    Tab("Extend", "extend", "A video, and what follows it.", extend.options, ("clip", "prompt", "seconds", "seed")),
    Tab(
        "Interpolate",
        "interpolate",
        "Frames between two pictures, or between all frames of a video.",
        interpolate.options,
        ("first", "last", "between", "clip", "factor", "prompt", "seed"),
    ),
    Tab(
        "Inpaint",
        "inpaint",
        "A part of a video or picture painted anew: draw it white on the first frame, or give a mask.",
        inpaint.options,
        ("clip", "mask", "prompt", "remove", "seed"),
    ),
    Tab(
        "Edit",
        "edit",
        "What a video or picture shows, changed from one prompt to another.",
        edit.options,
        ("clip", "source", "prompt", "method", "strength", "seed"),
    ),
    Tab(
        "Style",
        "style",
        "A video or picture in the look of a picture.",
        style.options,
        ("clip", "style", "prompt", "style_prompt", "strength", "seed"),
    ),
    Tab(
        "Upscale",
        "upscale",
        "A video or picture made larger, or a video with more frames, by a model trained to.",
        upscale.options,
        ("clip", "by", "prompt", "seed"),
    ),
)
BY_PROGRAM = {tab.program: tab for tab in TABS}
