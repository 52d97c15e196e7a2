"""The roles in which a model is shown references (packing.py): what training and sampling agree on. Plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from .errors import UserError
from .limits import check, check_fields, setting, shown

FILE = "references.json"  # beside a published model's parts, its roles
HEADER = "latentvid_references"  # the same in the header of a LoRA's file
DROPOUT = 0.1  # of a role, where nothing is said
PLACES = ("beside", "aligned", "control", "channels")
SIGNALS = ("canny", "lines", "luminance", "flow", "tracks", "depth")  # data/signals.py computes them

KINDS = ("blur", "resize", "h264", "frames")  # data/degradations.py does them
AMOUNTS = {"blur": (0.0, 32.0), "resize": (1.0, 16.0), "h264": (0.0, 51.0), "frames": (2.0, 16.0)}


class Factors(NamedTuple):
    """How much smaller what is shown of a clip is than the clip: in height and width, and in frames."""

    least: float
    most: float
    frames: int

    @property
    def side(self) -> int:
        """By which its latent is smaller, for whatever of the factors is drawn."""
        return int(self.least)


@dataclass(frozen=True, kw_only=True)
class Degradation:
    """One thing that is done to a clip, so that a model learns to undo it."""

    kind: Literal["blur", "resize", "h264", "frames"] = setting(
        "blur: Gaussian, of so many pixels; resize: means over areas, so many times smaller; h264: coded, of that CRF; "
        "frames: one frame of so many is kept"
    )
    amount: float | tuple[float, float] = setting("how much: a number, or [low, high] of which one is drawn a sample")
    share: float = setting("share of the samples that it is done to", default=1.0)

    def __post_init__(self) -> None:
        check_fields(self, "degrade")
        if self.kind not in KINDS:
            raise ValueError(f"degrade: kind is {shown(self.kind)}: one of {', '.join(KINDS)}")
        low, high = self.amount if isinstance(self.amount, list | tuple) else (self.amount, self.amount)
        least, most = AMOUNTS[self.kind]
        if not least <= low <= high <= most:
            raise ValueError(
                f"degrade: amount of {self.kind} is {shown(self.amount)}: a number from {least:g} to {most:g}, or "
                "[low, high], the lower one first"
            )
        if self.kind == "frames" and (low != high or low != int(low)):
            raise ValueError("degrade: amount of frames is one whole number: what a model is shown keeps its length")
        if self.kind in ("resize", "frames") and self.share != 1:
            raise ValueError(f"degrade: share of {self.kind} must be 1: leave it out, or draw the amount of a resize")
        object.__setattr__(self, "amount", (float(low), float(high)))


@dataclass(frozen=True, kw_only=True)
class Placed:
    """How the pictures and clips of one role are put beside a sample."""

    place: Literal["beside", "aligned", "control", "channels"] = setting(
        "beside: positions in time after the clip's (a subject, a style); aligned: those of the clip (control signals, "
        "edits, low resolution); control: no tokens, a ControlNet reads it (the section controlnet); channels: no "
        "tokens, but further input channels (model.condition_channels): with degrade the clip made worse, else a mask, "
        "white where the clip is to be made, whose rest the model is told of"
    )
    signal: Literal["canny", "lines", "luminance", "flow", "tracks", "depth"] | None = setting(
        "instead of column: what is computed of the clip itself (edges, soft edges, luminance, optical flow, "
        "tracks of points, depth)",
        default=None,
    )
    signal_model: str | None = setting(
        "of signal: depth, folder or hub name of the network that estimates it (transformers' "
        "AutoModelForDepthEstimation)",
        default=None,
    )
    max_area: int | None = setting(
        "largest height x width in pixels; null: of one beside as of the clips, of an aligned one the clip's own size",
        default=None,
    )
    max_frames: int | None = setting("most frames of one beside, from its start; null: as of the clips", default=None)
    degrade: tuple[Degradation, ...] | None = setting(
        "instead of column: the clip itself after these, one after another: [{kind: resize, amount: 2}, ...]",
        default=None,
    )
    noise: float | tuple[float, float] | None = setting(
        "noise level that its latents have, and that the model is told: [low, high] of which one is drawn a sample; "
        "null: none",
        default=None,
    )

    def __post_init__(self) -> None:
        each = tuple(Degradation(**x) if isinstance(x, Mapping) else x for x in self.degrade or ())
        object.__setattr__(self, "degrade", each or None)
        if self.noise is not None:
            pair = self.noise if isinstance(self.noise, list | tuple) else (self.noise, self.noise)
            object.__setattr__(self, "noise", tuple(pair))
        check_fields(self, "references")
        if self.place not in PLACES:
            raise ValueError(f"place is {shown(self.place)}: one of {', '.join(PLACES)}")
        if self.signal not in (None, *SIGNALS):
            raise ValueError(f"signal is {shown(self.signal)}: one of {', '.join(SIGNALS)}")
        if (self.signal_model is not None) != (self.signal == "depth"):
            raise ValueError(
                "signal: depth needs signal_model, the folder or hub name of the network that estimates it"
                if self.signal == "depth"
                else "signal_model is of signal: depth, which a network estimates: leave it out"
            )
        if self.along and self.max_frames is not None:
            raise ValueError("max_frames is of references beside the clip: an aligned one has the clip's frames")
        if self.signal is not None and self.place not in ("control", "aligned"):
            raise ValueError("signal is of what runs along with the clip: set place to control or aligned")
        if self.place == "control" and self.max_area is not None:
            raise ValueError("max_area: a ControlNet reads a signal of the clip's own size: leave it out")
        if self.place == "channels" and self.max_area is not None:
            raise ValueError("max_area is of references that are tokens: what channels show has the clip's size")
        self._check_made_worse()

    def _check_made_worse(self) -> None:
        """Raises ValueError for what `degrade` and `noise` do not go with."""
        if self.degrade and self.signal is not None:
            raise ValueError("degrade and signal both say what is computed of the clip: leave one of them out")
        if self.degrade and self.place not in ("aligned", "channels"):
            raise ValueError("degrade is of what runs along with the clip: set place to aligned or channels")
        if self.degrade and self.max_area is not None:
            raise ValueError("max_area: the resize of degrade says how large it is: leave it out")
        if twice := [kind for kind in ("resize", "frames") if sum(x.kind == kind for x in self.degrade or ()) > 1]:
            raise ValueError(f"degrade has {twice[0]} more than once: give it once, with all of it")
        if self.noise is not None and not (self.as_tokens or self.by_channels):
            raise ValueError("noise: a ControlNet reads its signal, and a mask is read, as it is: leave it out")
        if self.noise is not None and (len(self.noise) != 2 or not self.noise[0] <= self.noise[1] < 1):
            raise ValueError(f"noise is {shown(list(self.noise))}: two levels below 1, the lower one first")

    @property
    def along(self) -> bool:
        """Whether its frames are those of the clip, cut and mirrored as it is."""
        return self.place != "beside"

    @property
    def as_tokens(self) -> bool:
        """Whether its tokens stand in a sample's segment."""
        return self.place in ("beside", "aligned")

    @property
    def by_channels(self) -> bool:
        """Whether its latent is further input channels of the clip's tokens."""
        return self.place == "channels" and self.degrade is not None

    @property
    def is_mask(self) -> bool:
        """Whether it says what of the clip is to be made."""
        return self.place == "channels" and self.degrade is None

    @property
    def factors(self) -> Factors:
        """By how much it is smaller than the clip that it is computed of."""
        amounts = {each.kind: each.amount for each in self.degrade or ()}
        return Factors(*amounts.get("resize", (1.0, 1.0)), int(amounts.get("frames", (1.0,))[0]))

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
        """What is younger than the first folders is there only where it says something."""
        found = {field.name: getattr(self, field.name) for field in fields(Role)}
        if self.degrade is not None:
            found["degrade"] = [
                {"kind": x.kind, "amount": list(x.amount), **({} if x.share == 1 else {"share": x.share})}
                for x in self.degrade
            ]
        found["noise"] = None if self.noise is None else list(self.noise)
        younger = ("signal", "signal_model", "degrade", "noise", "number")
        return {key: value for key, value in found.items() if value is not None or key not in younger}


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
        if (self.column is not None) + (self.signal is not None) + bool(self.degrade) != 1:
            raise ValueError(
                "give column, which names the files, or signal, which is computed of the clips: one of both (or "
                "degrade, the clips themselves made worse)"
            )
        if self.dropout is None:
            object.__setattr__(self, "dropout", 0.0 if self.place == "control" else DROPOUT)
        if self.place == "control" and self.dropout:
            raise ValueError("dropout: without its signal a ControlNet learns nothing of a sample: leave it out")

    @property
    def computed(self) -> bool:
        """Whether it is made of the clip itself, and has no files."""
        return self.column is None

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
    return next((name for name, role in roles.items() if role.is_mask), None)


def low_in(roles: Mapping[str, Placed]) -> str | None:
    """The name of the role whose clips are further input channels; None: there is none."""
    return next((name for name, role in roles.items() if role.by_channels), None)


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
