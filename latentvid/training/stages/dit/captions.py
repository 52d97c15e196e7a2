"""What the text encoder can read of a manifest's captions, found out before anything is encoded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, compress

import numpy as np

from ....config.schema import CaptionRules
from ....data.manifest.manifest import Manifest
from ....data.manifest.samples import Dropped, shown
from ....errors import UserError
from ....text import Fit, TextEncoder

MOSTLY = 0.5  # a caption of whose characters more are unknown counts as unknown
EXAMPLES = 3


@dataclass
class _Found:
    """The samples of a manifest by what is to be said of their captions."""

    long: list[int] = field(default_factory=list)
    cut: dict[int, str] = field(default_factory=dict)
    unknown: list[int] = field(default_factory=list)
    partly: list[int] = field(default_factory=list)
    characters: dict[str, None] = field(default_factory=dict)


def check_captions(
    manifest: Manifest,
    text: TextEncoder,
    rules: CaptionRules,
    *,
    drop_unknown: bool = False,
    option: str = "caption.unknown_share=",
) -> Manifest:
    """The manifest with what the text encoder can take; what is left out ("caption-too-long", and "caption-unknown"
    where that is asked for) by reason; notes of the captions that were cut, and of the unknown ones.

    Raises UserError where more than `rules.unknown_share` of the captions are unknown: they would all be one and the
    same to the model. option: how a user sets that share.
    """
    samples, found = manifest.samples, _look(manifest, text, rules)
    share = len(found.unknown) / max(1, len(samples))
    about = (
        f"of {len(samples)} captions are unknown to the text encoder, all or most of their characters: it cannot tell"
    )
    if share > rules.unknown_share:
        raise UserError(
            f"{manifest.source}: {len(found.unknown)} {about} them apart ({_examples(manifest, found.unknown)}); take "
            f"a text encoder for their language, or allow it with {option}{min(1, round(share + 0.005, 2)):g}"
        )
    left_out = {i: "caption-too-long" for i in found.long}
    notes = list(manifest.notes)
    if found.cut:
        notes.append(f"{len(found.cut)} captions too long for the text encoder: cut ({_examples(manifest, found.cut)})")
    if drop_unknown:
        left_out |= dict.fromkeys(found.unknown, "caption-unknown")
    elif found.unknown:
        notes.append(f"{len(found.unknown)} {about} them apart ({_examples(manifest, found.unknown)})")
    if found.partly:
        characters = shown("".join(found.characters)[:40])
        notes.append(
            f"{len(found.partly)} captions have characters that the text encoder does not know, such as {characters} "
            f"({_examples(manifest, found.partly)})"
        )
    if found.cut:
        samples = samples.with_captions(found.cut)
    kept = np.array([i not in left_out for i in range(len(samples))], bool)
    return replace(
        manifest,
        samples=samples.where(kept),
        dropped=Dropped(chain(manifest.dropped, ((samples.name(i), why) for i, why in sorted(left_out.items())))),
        extra={name: list(compress(column, kept)) for name, column in manifest.extra.items()},
        notes=tuple(notes),
        unknown=0 if drop_unknown else len(found.unknown),
    )


def _look(manifest: Manifest, text: TextEncoder, rules: CaptionRules) -> _Found:
    captions = manifest.samples.captions
    found = _Found()
    for i, (caption, fit) in enumerate(zip(captions, _fits(captions, text), strict=True)):
        if fit.tokens > text.max_tokens:
            if rules.too_long == "truncate":
                found.cut[i] = text.shortened(caption)
            else:
                found.long.append(i)
                continue
        if fit.share > MOSTLY:
            found.unknown.append(i)
        elif fit.unknown:
            found.partly.append(i)
            if len(found.characters) < 100:
                found.characters |= dict.fromkeys(fit.unknown)
    manifest.samples.rest()
    return found


def _fits(captions: Sequence[str], text: TextEncoder, chunk: int = 4096) -> Iterable[Fit]:
    for start in range(0, len(captions), chunk):
        yield from text.fits(captions[start : start + chunk])


def _examples(manifest: Manifest, places: Iterable[int]) -> str:
    samples = manifest.samples
    first = [int(i) for i, _ in zip(places, range(EXAMPLES), strict=False)]
    words = [f"{shown(samples.name(i))}: {shown(samples.captions[i][:40])!r}" for i in first]
    return "; ".join(words) + ("; ..." if len(list(places)) > EXAMPLES else "")
