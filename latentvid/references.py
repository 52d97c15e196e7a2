"""The roles in which a model is shown references (packing.py): what training and sampling agree on. Plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from .errors import UserError
from .limits import check, check_fields, setting, shown

FILE = "references.json"  # beside a published model's parts, its roles
HEADER = "latentvid_references"  # the same in the header of a LoRA's file
DROPOUT = 0.1  # of a role, where nothing is said
PLACES = ("beside", "aligned", "control", "channels")
SIGNALS = ("canny", "lines", "luminance", "flow", "tracks")  # data/signals.py computes them


@dataclass(frozen=True, kw_only=True)
class Placed:
    """How the pictures and clips of one role are put beside a sample."""

    place: Literal["beside", "aligned", "control", "channels"] = setting(
        "beside: positions in time after the clip's (a subject, a style); aligned: those of the clip (control signals, "
        "edits, low resolution); control: no tokens, a ControlNet reads it (the section controlnet); channels: no "
        "tokens, but a mask, white where the clip is to be made, whose rest the model is told of by "
        "model.condition_channels"
    )
    signal: Literal["canny", "lines", "luminance", "flow", "tracks"] | None = setting(
        "in the place of column: what is computed of the clip itself (edges, soft edges, luminance, optical flow, "
        "tracks of points)",
        default=None,
    )
    max_area: int | None = setting(
        "largest height x width in pixels; null: of one beside as of the clips, of an aligned one the clip's own size",
        default=None,
    )
    max_frames: int | None = setting("most frames of one beside, from its start; null: as of the clips", default=None)

    def __post_init__(self) -> None:
        check_fields(self, "references")
        if self.place not in PLACES:
            raise ValueError(f"place is {shown(self.place)}: one of {', '.join(PLACES)}")
        if self.signal not in (None, *SIGNALS):
            raise ValueError(f"signal is {shown(self.signal)}: one of {', '.join(SIGNALS)}")
        if self.along and self.max_frames is not None:
            raise ValueError("max_frames is of references beside the clip: an aligned one has the clip's frames")
        if self.signal is not None and self.place not in ("control", "aligned"):
            raise ValueError("signal is of what runs along with the clip: set place to control or aligned")
        if self.place == "control" and self.max_area is not None:
            raise ValueError("max_area: a ControlNet reads a signal of the clip's own size: leave it out")
        if self.place == "channels" and self.max_area is not None:
            raise ValueError("max_area is of references that are tokens: a mask has the clip's size")

    @property
    def along(self) -> bool:
        """Whether its frames are those of the clip, cut and mirrored as it is."""
        return self.place != "beside"

    def area(self, height: int, width: int) -> int | None:
        """Largest height x width of one that is aligned with a clip of this size; None: the clip's own."""
        return None if self.max_area is None or height * width <= self.max_area else self.max_area


@dataclass(frozen=True, kw_only=True)
class Role(Placed):
    """A role as a model knows it. number: among those beside, where it is another than its place among them: of a LoRA
    that was trained without the roles that the model knows before."""

    number: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.number is not None and (self.along or type(self.number) is not int or self.number < 0):
            raise ValueError(f"number is {shown(self.number)}: of those beside a whole number from 0")

    def as_json(self) -> dict[str, Any]:
        """Without `signal` and `number` where they say nothing: as folders were written before there were such."""
        found = {field.name: getattr(self, field.name) for field in fields(Role)}
        return {key: value for key, value in found.items() if value is not None or key not in ("signal", "number")}


@dataclass(frozen=True, kw_only=True)
class ReferenceColumn(Placed):
    """A role in training: where the files are, or what is computed of the clips."""

    column: str | None = setting(
        "the manifests' column of its files, relative to the manifest or absolute: one, or a list of several; a row "
        "whose cell is empty has none",
        default=None,
    )
    dropout: float | None = setting(
        "share of samples trained without those of this role; null: 0.1, of place control 0", default=None
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.column is None) == (self.signal is None):
            raise ValueError(
                "give column, which names the files, or signal, which is computed of the clips: one of both"
            )
        if self.dropout is None:
            object.__setattr__(self, "dropout", 0.0 if self.place == "control" else DROPOUT)
        if self.place == "control" and self.dropout:
            raise ValueError("dropout: without its signal a ControlNet learns nothing of a sample: leave it out")

    def role(self, max_area: int | None, max_frames: int) -> Role:
        """What sampling must know of it. max_area, max_frames: of the clips."""
        known = {field.name: getattr(self, field.name) for field in fields(Placed)}
        if self.place == "beside":
            known["max_area"] = self.max_area if self.max_area is not None else max_area
            known["max_frames"] = self.max_frames if self.max_frames is not None else max_frames
        return Role(**known)


def read_roles(held: Any, where: str) -> dict[str, Role]:
    """Roles by name, as `Role.as_json` wrote them. Raises UserError that names `where` they stand."""
    try:
        roles = {name: Role(**dict(role)) for name, role in dict(held or {}).items()}
        for role in roles.values():
            for key in ("max_area", "max_frames"):
                if (value := getattr(role, key)) is not None:
                    check(key, value)
        return roles
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: references={shown(held)}: must be roles with their places ({error})") from None


def as_json(roles: Mapping[str, Role]) -> dict[str, dict[str, Any]] | None:
    """None where there are no roles."""
    return {name: role.as_json() for name, role in roles.items()} or None


def header_of(roles: Mapping[str, Role]) -> dict[str, str]:
    """What the header of a LoRA's file says of the roles that it was trained with; nothing where there are none."""
    return {HEADER: json.dumps(as_json(roles))} if roles else {}


def roles_in(header: Mapping[str, str], where: str) -> dict[str, Role]:
    """Those that `header_of` wrote. Raises UserError where they are none."""
    try:
        return read_roles(json.loads(header.get(HEADER, "{}")), where)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: {HEADER} in its header cannot be read ({error}): copy the file again") from None


def save_roles(folder: Path, roles: Mapping[str, Role]) -> None:
    """Beside the parts of a published model; nothing where there are none."""
    if roles:
        (folder / FILE).write_text(json.dumps(as_json(roles), indent=2) + "\n", encoding="utf-8")


def saved_roles(folder: Path) -> dict[str, Role]:
    """Those that `save_roles` wrote. Raises UserError where it cannot be read."""
    file = folder / FILE
    if not file.is_file():
        return {}
    try:
        return read_roles(json.loads(file.read_text(encoding="utf-8")), str(file))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({error}): it is damaged, copy it again") from None


def mask_in(roles: Mapping[str, Placed]) -> str | None:
    """The name of the role whose files are masks of the clips; None: there is none."""
    return next((name for name, role in roles.items() if role.place == "channels"), None)


def numbers_of(roles: Mapping[str, Placed]) -> dict[str, int]:
    """`packing.Reference.role` of each: numbers among those that stand beside."""
    beside = [name for name, role in roles.items() if role.place == "beside"]
    own = {name: role.number for name, role in roles.items() if isinstance(role, Role) and role.number is not None}
    return {name: beside.index(name) if name in beside else 0 for name in roles} | own


def with_more(known: Mapping[str, Role], more: Mapping[str, Role], where: object) -> dict[str, Role]:
    """Roles of a model, and those of a LoRA in the file `where`, which keep the numbers that it was trained with.
    Raises UserError where one is known otherwise."""
    for name, role in more.items():
        if _unnumbered(known.get(name, role)) != _unnumbered(role):
            raise UserError(f"{where} was trained with another reference {name} than what is loaded: load one of them")
    joined = {name: _unnumbered(role) for name, role in {**known, **more}.items()}
    numbers = numbers_of(known) | numbers_of(more)
    other = {name for name, number in numbers_of(joined).items() if number != numbers[name]}
    return {name: replace(role, number=numbers[name]) if name in other else role for name, role in joined.items()}


def _unnumbered(role: Role) -> Role:
    return replace(role, number=None)


def check_role(name: str, roles: Mapping[str, Role], what: str = "reference") -> Role:
    """The role of that name. Raises UserError for one that the model was not trained for."""
    if name not in roles:
        known = f"this model knows {', '.join(roles)}" if roles else "this model was trained without references"
        raise UserError(f"{what} {name}: there is no such role: {known}")
    return roles[name]
