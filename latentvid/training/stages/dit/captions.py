"""What the text encoder can read of a manifest's captions, found out before anything is encoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, compress, islice

import numpy as np

from ....config.schema import CaptionRules
from ....data.manifest.captions import joined
from ....data.manifest.manifest import Manifest
from ....data.manifest.samples import Dropped, Samples, shown
from ....errors import UserError
from ....text import Fit, TextEncoder

MOSTLY = 0.5  # a caption of whose characters more are unknown counts as unknown
EXAMPLES = 3


Place = tuple[int, int]  # a caption: its sample, and which of its captions


@dataclass
class _Found:
    """The captions of a manifest by what is to be said of them. count: of all."""

    count: int = 0
    long: list[Place] = field(default_factory=list)
    cut: dict[Place, str] = field(default_factory=dict)
    unknown: list[Place] = field(default_factory=list)
    partly: list[Place] = field(default_factory=list)
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
    where that is asked for) by reason; notes of the captions that were cut, and of the unknown ones. A clip of several
    captions keeps the others.

    Raises UserError where more than `rules.unknown_share` of the captions are unknown: they would all be one and the
    same to the model. option: how a user sets that share.
    """
    samples, found = manifest.samples, _look(manifest, text, rules)
    share = len(found.unknown) / max(1, found.count)
    about = (
        f"of {found.count} captions are unknown to the text encoder, all or most of their characters: it cannot tell"
    )
    if share > rules.unknown_share:
        raise UserError(
            f"{manifest.source}: {len(found.unknown)} {about} them apart ({_examples(manifest, found.unknown)}); take "
            f"a text encoder for their language, or allow it with {option}{min(1, round(share + 0.005, 2)):g}"
        )
    without = {place: "caption-too-long" for place in found.long}
    notes = list(manifest.notes)
    if found.cut:
        notes.append(f"{len(found.cut)} captions too long for the text encoder: cut ({_examples(manifest, found.cut)})")
    if drop_unknown:
        without |= dict.fromkeys(found.unknown, "caption-unknown")
    elif found.unknown:
        notes.append(f"{len(found.unknown)} {about} them apart ({_examples(manifest, found.unknown)})")
    if found.partly:
        characters = shown("".join(found.characters)[:40])
        notes.append(
            f"{len(found.partly)} captions have characters that the text encoder does not know, such as {characters} "
            f"({_examples(manifest, found.partly)})"
        )
    unknown = 0 if drop_unknown else _all_in(samples, found.unknown)
    changed, left_out = _changed(samples, found.cut, without)
    if some := [place for place in without if place[0] not in left_out]:
        notes.append(f"{len(some)} captions left out of clips that have others ({_examples(manifest, some)})")
    if changed:
        samples = samples.with_captions(changed)
    kept = np.array([i not in left_out for i in range(len(samples))], bool)
    return replace(
        manifest,
        samples=samples.where(kept),
        dropped=Dropped(chain(manifest.dropped, ((samples.name(i), why) for i, why in sorted(left_out.items())))),
        extra={name: list(compress(column, kept)) for name, column in manifest.extra.items()},
        notes=tuple(notes),
        unknown=unknown,
    )


def _all_in(samples: Samples, places: Collection[Place]) -> int:
    """How many samples have all their captions here."""
    return sum(count == len(samples.captions(i)) for i, count in Counter(i for i, _ in places).items())


def _changed(
    samples: Samples, cut: Mapping[Place, str], without: Mapping[Place, str]
) -> tuple[dict[int, str], dict[int, str]]:
    """Samples with other captions, `joined`; and those that have none left, with the reason."""
    changed, left_out = {}, {}
    reasons = {i: why for (i, _), why in without.items()}
    for i in sorted({i for i, _ in (*cut, *without)}):
        captions = [cut.get((i, n), caption) for n, caption in enumerate(samples.captions(i)) if (i, n) not in without]
        if captions:
            changed[i] = joined(captions)
        else:
            left_out[i] = reasons[i]
    return changed, left_out


def _look(manifest: Manifest, text: TextEncoder, rules: CaptionRules) -> _Found:
    found = _Found()
    for place, caption, fit in _fits(manifest.samples, text):
        found.count += 1
        if fit.tokens > text.max_tokens:
            if rules.too_long == "truncate":
                found.cut[place] = text.shortened(caption)
            else:
                found.long.append(place)
                continue
        if fit.share > MOSTLY:
            found.unknown.append(place)
        elif fit.unknown:
            found.partly.append(place)
            if len(found.characters) < 100:
                found.characters |= dict.fromkeys(fit.unknown)
    manifest.samples.rest()
    return found


def _fits(samples: Samples, text: TextEncoder, chunk: int = 4096) -> Iterator[tuple[Place, str, Fit]]:
    for start in range(0, len(samples), chunk):
        every = [
            ((i, n), caption)
            for i in range(start, min(start + chunk, len(samples)))
            for n, caption in enumerate(samples.captions(i))
        ]
        fits = text.fits([caption for _, caption in every])
        yield from ((place, caption, fit) for (place, caption), fit in zip(every, fits, strict=True))


def _examples(manifest: Manifest, places: Collection[Place]) -> str:
    samples = manifest.samples
    words = [f"{shown(samples.name(i))}: {shown(samples.captions(i)[n][:40])!r}" for i, n in islice(places, EXAMPLES)]
    return "; ".join(words) + ("; ..." if len(places) > EXAMPLES else "")
