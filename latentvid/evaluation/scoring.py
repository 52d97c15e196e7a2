"""Scores clips in files, by themselves and against real ones, in memory that does not grow with their pixels.

[accelerate launch] -m latentvid.evaluation CLIPS [--real REAL] ...
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tqdm import tqdm

from ..errors import UserError
from ..files import check_target, check_writable
from ..limits import check_fields
from ..lock import FolderLock
from ..words import counted
from ..world import from_main, process_state
from .clip_folder import ClipSet, Item, list_clips, paired, unrelated
from .defaults import COMMON, RESAMPLES, SHOWN
from .extremes import PAGE, as_rows, of_each, write_page
from .footage import Cut
from .guards import unlike
from .intervals import FEWEST
from .mean_score import MeanScore
from .metrics import KNOWN, Metrics, open_metrics
from .paired import compare_one, partners, rows_of_pairs, seeds_of
from .repeats import WATCH, unlike_pixels
from .row_cache import Found, RowCache
from .rows import Score
from .score_table import FILES, Scored
from .sets.features import PICTURES
from .sets.scores import FrechetScore, JediScore
from .summary import Rows, as_many, summarise_one

FRAMES = 16  # of a clip, where nothing is said
ENOUGH = 2048  # clips, from which on published distances are reported


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """Arguments of the command.

    clips, real: folders of videos and images, single files, or manifests. against: such clips of another model, of the
    same prompts and seeds or the same names. metrics: names of scores; None: all that can
    be had. captions: a table of captions. frames: of each clip, at most; None: `FRAMES`, of files of one length only.
    size, fps: of each clip, None is each file's own. stride: every which frame is taken. drop_short: files with fewer
    frames are left out. allow: in what two sets may differ (`defaults.COMMON`). max_clips, max_real: how many, shared
    among the files. weights, inception, i3d, pictures, resize: as in `open_metrics`. extractor: networks of one's own,
    its `own`. cache: folder of the rows; None: in `out`. shown: best and worst clips on the page, 0 for no page.
    resamples: halvings of the files for the intervals; 0 for no intervals.
    """

    clips: Path
    real: Path | None = None
    against: Path | None = None
    metrics: Sequence[str] | None = None
    captions: Path | None = None
    frames: int | None = None
    size: tuple[int, int] | None = None
    fps: float | None = None
    stride: int = 1
    drop_short: bool = False
    allow: Sequence[str] = ()
    max_clips: int | None = None
    max_real: int | None = None
    weights: Path | None = None
    inception: Path | None = None
    i3d: Path | None = None
    pictures: int = PICTURES
    resize: str | None = None
    extractor: Sequence[str] = ()
    out: Path = Path("scores")
    cache: Path | None = None
    shown: int = SHOWN
    resamples: int = RESAMPLES

    def __post_init__(self) -> None:
        check_fields(self, "")
        if unknown := set(self.allow) - set(COMMON):
            raise UserError(f"allow {min(unknown)!r}: sets may differ in {', '.join(COMMON)}")
        if self.resamples == 1:
            raise UserError("resamples=1: give 2 or more, or 0 for no intervals")
        if self.weights is not None and not self.weights.is_dir():
            raise UserError(f"weights {self.weights}: give the folder that holds inception/, i3d/, lpips/ ...")


def check_given(given: Mapping[str, Any]) -> None:
    """Raises UserError for an option that the named scores make void. given: the options that were, by name."""
    if "metrics" not in given:
        return
    known = KNOWN.with_own(given.get("extractor", ()))
    extractors = known.choose(given["metrics"]).extractors
    kinds = extractors.keys()
    named = f"--metrics {' '.join(given['metrics'])}"
    for option, kind in (
        ("inception", "inception"),
        ("pictures", "inception"),
        ("resize", "inception"),
        ("i3d", "i3d"),
    ):
        if option in given and kind not in kinds:
            of = ", ".join(name for name, score in KNOWN.scores.items() if score.extractor == kind)
            raise UserError(f"--{option} is of {of}, and {named} asks for none of them: leave it out")
    if "captions" in given and not any("caption" in kind.needs for kind in extractors.values()):
        raise UserError(f"--captions {given['captions']}: {named} needs none: leave it out")
    if "weights" in given and all(kind in ("inception", "i3d") and kind in given for kind in kinds):
        files = " and ".join(f"--{kind}" for kind in sorted(kinds))
        raise UserError(f"--weights {given['weights']}: {named} has its networks from {files}: leave it out")


class Evaluation:
    """The clips and the scores that they will get; every process of a launch makes the same one."""

    def __init__(self, config: ScoringConfig, state: PartialState) -> None:
        self.config, self.state = config, state
        # before anything is looked for
        self.known = KNOWN.with_own(config.extractor)
        self.known = self.known if config.metrics is None else self.known.choose(config.metrics)
        about = {name: getattr(config, name) for name in ("size", "fps", "stride", "drop_short")}
        cut = Cut(frames=config.frames or FRAMES, temporal_stride=1, spatial_stride=1, **about)
        self.clips = list_clips(config.clips, cut, config.max_clips, config.captions, quiet=not self.main)
        self.real: ClipSet | None = None
        self.apart: dict[str, str] = {}  # how the sets differ that is not allowed
        if config.real is not None:
            self.real = list_clips(config.real, cut, config.max_real, quiet=not self.main)
            stated = config.frames is not None
            self.clips = paired(self.clips, config.real, cut, {*config.allow, *(("length",) if stated else ())})
            found = unlike(self.clips, self.real, stated=stated)
            self.apart = {name: why for name, why in found.items() if name not in config.allow}
        self.values: dict[Item, dict[str, float]] = {item: {} for item in self.clips.items}
        self.others, self.pairs = None, []
        if config.against is not None:
            about = (config.against, config.real, cut, config.max_clips, config.captions, config.allow)
            self.others, self.pairs = partners(self.clips, *about, stated=config.frames is not None)
        self.metrics: Metrics = open_metrics(
            config.metrics,
            config.weights,
            state.device,
            pictures=config.pictures,
            resize=config.resize,
            own=config.extractor,
            files={k: v for k, v in (("inception", config.inception), ("i3d", config.i3d)) if v is not None},
            without={name: why for name, score in self.known.scores.items() if (why := self._lacks(score))},
        )

    def _lacks(self, score: Score) -> str | None:
        """What the clips do not have that the score needs."""
        if score.compares == "sets" and self.real is None:
            return "it compares with real clips: give --real"
        if score.compares == "sets" and (apart := self._apart(self.known.extractors[score.extractor])):
            return "; ".join(apart)
        if score.compares == "pairs":
            with_pair = sum(item.pair is not None for item in self.clips.items)
            if self.real is None or not with_pair:
                return "it compares each clip with the real one of the same name: give --real with such files"
            if self.config.metrics is None and with_pair < len(self.clips.items):
                share = f"{with_pair} of {len(self.clips.items)}"
                return f"only {share} clips have a real one of the same name: ask for this score by its name"
        if "caption" in self.known.extractors[score.extractor].needs and not self.clips.captioned:
            return "it needs captions: give --captions, or NAME.txt beside each clip"
        return None

    def _apart(self, extractor: Any, but: Collection[str] = ()) -> list[str]:
        """What the sets do not share that the extractor's rows must."""
        needed = set(getattr(extractor, "alike", COMMON)) - set(but)
        return [why for name, why in self.apart.items() if name in needed]

    @cached_property
    def caches(self) -> dict[str, RowCache]:
        """Whose rows are needed: of the clips, of the real ones, and of real pairs that have nothing in common."""
        folder, extractors = self.config.cache or self.config.out / "rows", self.metrics.extractors
        watch = {} if self.real is None else {kind.name: kind() for kind in WATCH}
        found = {"clips": RowCache(folder, self.clips.items, extractors | watch)}
        if self.others is not None:
            found["others"] = RowCache(folder, self.others.items, extractors)
        if self.real is not None:
            of_pairs = {score.extractor for score in self.metrics.scores.values() if score.compares == "pairs"}
            pairs = {name: extractor for name, extractor in extractors.items() if name in of_pairs}
            lone = {
                name: extractor
                for name, extractor in extractors.items()
                if name not in of_pairs and ("caption" not in extractor.needs or self.real.captioned)
            }
            found["real"] = RowCache(folder, self.real.items, lone | watch)
            found["unrelated"] = RowCache(folder, unrelated(self.clips.items), pairs)
        return found

    def fill(self) -> None:
        """This process's share of the rows."""
        missing = {label: cache.missing() for label, cache in self.caches.items()}
        self.state.wait_for_everyone()  # all have looked, so that all share out the same chunks
        for label, chunks in missing.items():
            mine = chunks[self.state.process_index :: self.state.num_processes]
            self.caches[label].fill(mine, label=label, quiet=not self.main)
        self.state.wait_for_everyone()

    @property
    def main(self) -> bool:
        return self.state.is_main_process

    def scored(self) -> Scored:
        """The scores of the rows that all processes have left. Raises UserError where a named score has too few, or is
        of sets that do not compare."""
        found = {label: {name: cache.read(name) for name in cache.extractors} for label, cache in self.caches.items()}
        if self.real is not None:
            both = [{kind.name: found[label].pop(kind.name) for kind in WATCH} for label in ("clips", "real")]
            self.apart = unlike_pixels(*both, self.config.allow) | self.apart
        scored = Scored(self._settings(), left_out=dict(self.metrics.left_out))
        real_skipped = [] if self.real is None else self.real.skipped
        scored.skipped = [*self.clips.skipped, *real_skipped]
        scored.skipped += [fault for label in ("clips", "real") for rows in found.get(label, {}).values()
                           for fault in rows.skipped]  # fmt: skip
        for name, score in tqdm(self.metrics.scores.items(), desc="scores", unit="score", disable=None):
            kind = score.extractor
            against = "unrelated" if score.compares == "pairs" else "real"
            try:
                own, beside = found["clips"][kind], found.get(against, {}).get(kind)
                real = self._comparable(score, own.rows, None if beside is None else beside.rows, scored.notes)
                drawn = [(own.rows, own.files), (real, None if real is None else beside.files)]
                if score.compares == "sets" and "count" not in self.config.allow:
                    drawn = as_many(name, drawn, scored.notes)
                (rows, files), (real, real_files) = drawn
                scored.results[name] = summarise_one(score, rows, real, self.config.resamples, files, real_files)
                self._add_values(score, own, real)
            except UserError as error:
                why = "; ".join([str(error), *sorted({fault.reason for fault in found["clips"][kind].skipped})[:3]])
                if self.config.metrics is not None:
                    raise UserError(f"{name}: {why}") from error
                scored.left_out[name] = why
        scored.clips = as_rows(self.values, self.metrics.scores, seeds_of(self.config.clips))
        if self.others is not None:
            self._compare(scored, found)
        scored.counts = self._counts()
        scored.notes += self._notes(scored)
        scored.notes += self.metrics.remarks({kind: rows.rows for kind, rows in found["clips"].items()})
        return scored

    def _add_values(self, score: Score, found: Found, real: Rows | None) -> None:
        """Of each clip that has rows, its own score or its influence on the set's; the latter for the page alone."""
        if isinstance(score, MeanScore) or self.config.shown:
            for item, value in zip(found.items, of_each(score, found.rows, real), strict=True):
                if math.isfinite(value):  # as JSON can hold it
                    self.values[item][score.name] = value

    def write_page(self, path: Path) -> None:
        """The best and the worst clips by each score."""
        write_page(path, self.values, list(self.metrics.scores.values()), self.config.shown)

    def _compare(self, scored: Scored, found: Mapping[str, Mapping[str, Found]]) -> None:
        """Adds what the clips' scores are less the other model's."""
        for name in scored.results:
            score = self.metrics.scores[name]
            real = found["real"][score.extractor] if score.compares == "sets" else None
            beside = (None, None) if real is None else (real.rows, real.files)
            both = [found[label][score.extractor] for label in ("clips", "others")]
            try:
                drawn = rows_of_pairs(self.pairs, (self.clips.items, self.others.items), both)
                scored.compared[name] = compare_one(score, *drawn, *beside, self.config.resamples)
            except UserError as error:
                scored.notes.append(f"{name} is not compared: {error}")
        alone = [len(each.items) - len(self.pairs) for each in (self.clips, self.others)]
        if any(alone):
            scored.notes.append(
                f"{counted(len(self.pairs), 'pair')}; {counted(alone[0], 'clip')} and {alone[1]} others have no partner"
            )

    def _comparable(self, score: Score, rows: Rows, real: Rows | None, notes: list[str]) -> Rows | None:
        """The real rows, or None where they are only a floor and do not compare. Raises UserError for sets unlike."""
        extractor = self.metrics.extractors[score.extractor]
        if score.compares == "sets":
            if not real:
                raise UserError("no real clip can be used")
            if apart := self._apart(extractor):
                raise UserError("; ".join(apart))
        if score.compares == "none" and real and (apart := self._apart(extractor, but=("count", "repeats"))):
            notes.append(f"{score.name} has no floor of real clips: {'; '.join(apart)}")
            return None
        return real

    def _counts(self) -> dict[str, int]:
        counts = {"clips": len(self.clips.items), "files": self.clips.files}
        if self.real is not None:
            counts |= {"real_clips": len(self.real.items), "real_files": self.real.files}
        return counts

    def _settings(self) -> dict[str, Any]:
        given = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self.config).items()}
        about = {name: extractor.fingerprint for name, extractor in self.metrics.extractors.items()}
        return given | {"extractors": about}

    def _notes(self, scored: Scored) -> list[str]:
        notes = [extractor.fingerprint for extractor in self.metrics.extractors.values()]
        for label, clips in (("clips", self.clips), ("real clips", self.real)):
            files = 0 if clips is None else len({item.excerpt.path for item in clips.items})
            if 0 < files < FEWEST and self.config.resamples:
                notes.append(
                    f"{label} of {counted(files, 'file')}: scores of sets have an interval from "
                    f"{counted(FEWEST, 'file')} on"
                )
        notes += [f"allowed: the sets may differ in {name}" for name in self.config.allow]
        lengths = {item.excerpt.frames for item in self.clips.items}
        if len(lengths) > 1:
            notes.append(f"clips are of {min(lengths)} to {max(lengths)} frames: the shorter ones are whole files")
        biased = {name for name, score in self.metrics.scores.items() if isinstance(score, FrechetScore | JediScore)}
        small = [name for name, result in scored.results.items() if name in biased and result.count < ENOUGH]
        if small:
            notes.append(
                f"{' and '.join(small)}: fewer than {ENOUGH} clips bias it upwards, so compare it with figures of as "
                "many clips only"
            )
        return notes


def score_clips(config: ScoringConfig) -> Scored | None:
    """Does this process's share; the main one then writes scores.json, scores.md and clips.html into `out` and returns
    the scores.

    Raises UserError for arguments that are wrong, where a score that was named cannot be had, and where another
    evaluation writes to `out`.
    """
    evaluation = Evaluation(config, process_state())
    with ExitStack() as held:

        def hold() -> None:
            if evaluation.main:
                held.enter_context(FolderLock(config.out, "wait for it, or give another --out"))
                for name in (*FILES, PAGE):
                    check_target(config.out / name, "--out")
                check_writable(config.cache or config.out, "give another --cache, or mend this folder")

        from_main(hold)
        evaluation.fill()
        if not evaluation.main:
            return None
        scored = evaluation.scored()
        scored.write(config.out)
        if config.shown and scored.clips:
            evaluation.write_page(config.out / PAGE)
        return scored
