"""The clips of a subject's class as a further source of the data (DreamBooth, Ruiz et al. 2022): where they are, their
share, and the word that tells the subject from its class."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ....config.schema import DitConfig
from ....config.sections import several
from ....data.cache.writing import INDEX
from ....data.clips import ClipSource
from ....errors import UserError
from ....text import TextEncoder
from ....words import counted
from ....world import from_main

MANIFEST = "manifest.jsonl"  # of the folder: there when all clips are
LATENTS = "latents"  # the cache of them, for runs that train on caches


def folder_of(config: DitConfig) -> Path:
    return config.prior.dir or config.run.dir / "prior"


def finished(config: DitConfig) -> bool:
    """Whether all clips are there, and encoded where the run trains on caches."""
    made = folder_of(config)
    return (made / MANIFEST).is_file() and (config.data.latents is None or (made / LATENTS / INDEX).is_file())


def sources_of(config: DitConfig) -> tuple[Path, ...]:
    """The manifests, or caches, that a run trains on; that of the class clips is the last. A dry run does without it
    where it is not there. Raises UserError where another run does."""
    named = several(config.data.manifest if config.data.latents is None else config.data.latents)
    if not config.prior.wanted:
        return named
    made = folder_of(config)
    if from_main(lambda: finished(config)):
        return *named, made / (MANIFEST if config.data.latents is None else LATENTS)
    if config.run.dry_run:
        return named
    raise UserError(f"prior: {made} does not hold all its clips: put back what is missing, or start a new run.dir")


def class_source(config: DitConfig, sources: Sequence[str]) -> int | None:
    """Number of the source that is the class clips; None where the run has none, or they are still to be made."""
    last = len(sources) - 1
    return last if config.prior.wanted and last == len(several(config.data.manifest or config.data.latents)) else None


def weights_of(config: DitConfig, sources: Sequence[str], source_of: np.ndarray, tokens: np.ndarray) -> tuple:
    """Share of the tokens of each source, in any unit; () draws every sample once an epoch.

    The class clips have `prior.share`. Of the rest each source has its weight or, where there are none, as much as of
    the tokens, so that every sample of them comes equally often. source_of, tokens: of each sample.
    """
    given = config.data.weights
    subject = class_source(config, sources)
    if subject is None:
        return given
    if given and len(given) != subject:
        names = ", ".join(sources[:subject])
        raise UserError(
            f"data.weights has {len(given)} values for {subject} sources ({names}): give one for each, in their order; "
            "that of the class clips is prior.share"
        )
    weights = np.array(given) if given else np.bincount(source_of, tokens, len(sources))[:subject]
    rest = weights / weights.sum() * (1 - config.prior.share)
    return *rest.tolist(), config.prior.share


def notes_of(config: DitConfig, sources: Sequence[str], source_of: np.ndarray) -> list[str]:
    """What is to be said of the class clips at the start, a line each. Raises UserError where none can be used."""
    prior = config.prior
    if not prior.wanted:
        return []
    if (place := class_source(config, sources)) is None:
        return [
            f"prior: {folder_of(config)} is not finished: before training the model makes its "
            f"{counted(prior.clips, 'clip')}, "
            "which are left out of what is said here"
        ]
    if not (source_of == place).any():
        raise UserError(
            f"prior: none of the clips of {sources[-1]} can be trained on as data.* cuts clips: set prior.frames, "
            "height, width and fps to what the clips of data have, and another prior.dir"
        )
    return [f"prior: {sources[-1]} has {prior.share:g} of the tokens"]


def notes_of_word(config: DitConfig, source: ClipSource, text: TextEncoder) -> list[str]:
    """What the text encoder makes of the subject's word, a line each, where there are class clips to compare with."""
    samples, place = source.samples, class_source(config, source.sources)
    if place is None:
        return []
    used = np.unique(source.windows.sample)
    of_class = samples.source[used] == place
    members = used[~of_class].tolist(), used[of_class].tolist()
    subject, others = ([caption for i in each for caption in samples.captions(i)] for each in members)
    samples.rest()
    words = subject_words(subject, others)
    if not words:
        return [
            "warning: no word stands in all captions of data and in no prompt of prior, so that nothing tells the "
            "subject from its class: give it a rare word in all its captions"
        ]
    empty = next(text.fits([""])).tokens
    said = []
    for word, fit in zip(words, text.fits(words), strict=True):
        if fit.unknown:
            said.append(
                f"warning: the text encoder does not know {''.join(dict.fromkeys(fit.unknown))!r} in the subject's "
                f"word {word!r}: take one of letters that it knows"
            )
        else:
            said.append(f"the subject's word is {word!r}, {counted(fit.tokens - empty, 'token')} to the text encoder")
    return said


def subject_words(subject: Iterable[str], others: Iterable[str]) -> list[str]:
    """Words in all captions of the subject and in none of the others, in the order of the first."""
    every = [dict.fromkeys(_words(caption)) for caption in subject]
    common = set.intersection(*map(set, every)) if every else set()
    common -= {word for caption in others for word in _words(caption)}
    return [word for word in every[0] if word in common] if every else []


def _words(caption: str) -> list[str]:
    return re.findall(r"[^\s.,;:!?\"()]+", caption.casefold())
