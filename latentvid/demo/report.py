"""What a page says of a demo beside its training runs: the judge's scores, clips with their prompts, pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict

from ..evaluation.preference.counting import wilson
from ..files import file_fault
from ..page import Page, duration, facts, note, table
from ..report.facts import count_parameters, millions, shown_path
from ..report.reading import Clips, Faults, read_json
from ..report.runs import KINDS, Collection
from ..report.scores import Score, score_table, unequal_settings
from ..report.words import words
from ..training.checkpoint.records import STRICT, Number
from .scores import ORDER, USUAL, usual

ZOOM = 4
MAKES = "python -m latentvid.demo.scoring RUN makes it"
MEANING = {
    "vae_psnr": "autoencoder on held-out clips, dB",
    "vae_ssim": "autoencoder on held-out clips",
    "digit": "the right digit",
    "direction": "the right direction",
    "both": "digit and direction",
    "strict": "direction, and at least 75 % of the frames read as the digit",
    "colour": "the right colour",
    "verb": "bounces or moves on, as asked",
    "heldout_both": "digit and direction, pairs never seen in training",
    "heldout_strict": "strict, pairs never seen in training",
    "shuffled_both": "control: the same clips against shuffled captions",
}
MODEL = {"vae": "autoencoder", "transformer": "diffusion transformer", "text_encoder": "text encoder"}
PICTURES = {
    "Reconstructions": ("reconstructions.png", "held-out clips and what the autoencoder gives back"),
    "Contact sheet": ("contact_sheet.png", "frames of generated clips; green: as the prompt says"),
}
GROUPS = {"seen": "Pairs of digit and direction seen in training", "heldout": "Pairs never seen in training"}


_FIGURES = dict.fromkeys([*ORDER, "seconds", "chance_both"], NotRequired[Number])
DemoScores = TypedDict(  # scores.json
    "DemoScores",
    {
        **_FIGURES,
        "real": NotRequired[dict[str, Number]],
        "counts": NotRequired[dict[str, Clips]],
        "settings": NotRequired[dict[str, Number]],
    },
)
DemoScores.__pydantic_config__ = STRICT


def demo_sections(page: Page, folders: Sequence[Path], labels: Sequence[str]) -> list[tuple[str, Callable[[], str]]]:
    """As (title, what makes its HTML), of one demo or of several side by side."""
    pictures = [
        (title, lambda name=name, caption=caption: beside(labels, [picture(page, f / name, caption) for f in folders]))
        for title, (name, caption) in PICTURES.items()
    ]
    return [
        ("Scores", lambda: _scores(folders, labels)),
        ("Generated clips", lambda: clips(page, folders, labels)),
        *pictures,
        ("Parameters", lambda: _parameters(folders, labels)),
    ]


def _scores(folders: Sequence[Path], labels: Sequence[str]) -> str:
    faults = Faults()
    scores = [read_json(folder / "scores.json", folder, faults, DemoScores) for folder in folders]
    said = "".join(map(note, faults.lines))
    return said + (scores_table(scores[0]) if len(folders) == 1 else compared(labels, scores))


def _parameters(folders: Sequence[Path], labels: Sequence[str]) -> str:
    """Of each part of the pipeline."""
    rows = [(name, *(millions(count_parameters(folder / "pipeline" / part)) for folder in folders))
            for part, name in MODEL.items()]  # fmt: skip
    head = ("", *(escape(label) if len(labels) > 1 else "" for label in labels))
    return facts(head, [row for row in rows if any(row[1:])]) or note("pipeline is missing: no weights to count")


def scores_table(scores: dict | None) -> str:
    """Measured, usual, and of real clips; a measured value is green above the usual one, else red."""
    if scores is None:
        return note(f"scores.json is missing: {MAKES}")
    real, rows = scores.get("real", {}), []
    for name in (name for name in ORDER if name in scores):
        value = scores[name]
        level = "" if name not in USUAL else "good" if value >= USUAL[name] else "poor"
        title = f'{words(name)}<span class="dim">{MEANING[name]}</span>'
        beside = f'<span class="dim">{usual(name, scores)}</span>'
        rows.append((title, f'<b class="{level}">{_score(name, value)}</b>', beside, _score(name, real.get(name))))
    head = ("", "measured", "usually above", "real clips")
    explained = (
        "A judge that ships with latentvid reads each clip: a classifier trained on real digits, and the path of the "
        "centre of mass. A demo made as it ships is usually above the second column. The last is what the same judge "
        "says of real held-out clips: the ceiling."
    )
    facts = f'<p class="dim">{escape("; ".join(_facts(scores)))}.</p>'
    return f"<p>{explained}</p>\n{table(head, rows, 'scores')}{facts}"


def _facts(scores: dict[str, Any]) -> list[str]:
    counts, settings = scores.get("counts", {}), scores.get("settings", {})
    facts = [
        f"{counts[k]} clips of {t}" for k, t in (("seen", "seen pairs"), ("heldout", "held-out pairs")) if k in counts
    ]
    facts += [f"{key} {value:g}" for key, value in settings.items()]
    return [f"The whole demo took {duration(scores['seconds'])}", *facts] if scores.get("seconds") else facts


def _score(name: str, value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if name == "vae_psnr" else f"{value:.3f}"


def compared(labels: Sequence[str], scores: Sequence[dict | None]) -> str:
    """The demos' scores and their differences; shares of clips have the interval that their number gives them."""
    notes = [note(f"{label}: scores.json is missing: {MAKES}")
             for label, one in zip(labels, scores, strict=True) if one is None]  # fmt: skip
    known = [{name: _with_interval(name, one) for name in ORDER if name in one} if one else {} for one in scores]
    settings = [(one or {}).get("settings", {}) for one in scores]
    words = (
        "The judge's intervals are those of a share of so many clips (Wilson, 95 %): other seeds of training vary more."
    )
    return "".join(
        [*notes, f'<p class="dim">{words}</p>', score_table(labels, known), unequal_settings(labels, settings)]
    )


def _with_interval(name: str, scores: dict[str, Any]) -> Score:
    value = scores[name]
    if name == "shuffled_both":  # of all pairings of the clips: no count of trials
        return Score(value)
    count = scores.get("counts", {}).get("heldout" if name.startswith("heldout_") else "seen")
    if name.startswith("vae_") or not count:
        return Score(value, better="higher")
    low, high = wilson(value, count)
    return Score(value, low, high, count, better="higher")


def clips(page: Page, folders: Sequence[Path], labels: Sequence[str]) -> str:
    """Looping videos, each with its prompt and what the judge read; of several demos a column each."""
    columns = []
    for folder in folders:
        faults = Faults()
        found = read_json(folder / "samples" / "clips.json", folder, faults)
        if not found:
            columns.append("".join(map(note, faults.lines)) or note(f"samples/clips.json is missing: {MAKES}"))
            continue
        groups = []
        for kind, title in GROUPS.items():
            cards = [_card(page, folder / "samples" / clip["file"], clip) for clip in found if clip["kind"] == kind]
            groups.append(f'<h4>{title}</h4><div class="cards demo">{"".join(cards)}</div>' if cards else "")
        columns.append("".join(groups))
    return beside(labels, columns)


def beside(labels: Sequence[str], columns: Sequence[str]) -> str:
    """A column for each demo; of one, the column."""
    if len(columns) == 1:
        return columns[0]
    parts = [f"<div><h4>{escape(label)}</h4>{column}</div>" for label, column in zip(labels, columns, strict=True)]
    return f'<div class="beside">{"".join(parts)}</div>'


def _card(page: Page, file: Path, clip: dict) -> str:
    width, height = ZOOM * clip["width"], ZOOM * clip["height"]
    if file_fault(file, file.parent) is None:
        size = f'width="{width}" height="{height}"'
        shown = f'<video class="small" src="{page.embed(file)}" {size} autoplay loop muted playsinline></video>'
    else:
        shown = note(f"{file.name} is missing")
    read = clip["read"] | ({"digit": "no digit"} if clip["read"]["digit"] == -1 else {})
    words = [
        f'<span class="{"good" if right else "poor"}">{"✓" if right else "✗"} {escape(str(read[name]))}</span>'
        for name, right in clip["right"].items()
    ]
    caption = f'{escape(clip["prompt"])}<span class="read">{" ".join(words)}</span>'
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


def picture(page: Page, file: Path, caption: str) -> str:
    if fault := file_fault(file, file.parent):
        return note(f"{file.name} {fault}: {MAKES}")
    return f'<img class="wide" src="{page.embed(file)}" alt="{escape(caption)}">'


def repeat_demo(folders: Sequence[Path]) -> str:
    commands = ["make demo"]
    for folder in map(shown_path, folders):
        commands += [
            f"python -m latentvid.demo.scoring {folder} --seed 0",
            f'python inference/t2v.py --model {folder}/pipeline --prompt "a red 7 moves up and to the left"',
        ]
    commands.append(f"python -m latentvid.report {' '.join(map(shown_path, folders))}")
    return f"<pre>{escape(chr(10).join(commands))}</pre>"


DEMO = Collection(
    "Demo",
    "A text-to-video model trained from nothing by latentvid: a causal video autoencoder, a small T5 and a "
    "diffusion transformer, on coloured handwritten digits that move and bounce.",
    runs={"vae_run": KINDS["vae"], "dit_run": KINDS["dit"]},  # in the order in which they are trained
    sections=demo_sections,
    repeat=repeat_demo,
)
