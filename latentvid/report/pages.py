"""The page of a run or a folder of runs, and of several of them side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ..data.windows import Transform
from ..demo.report import DEMO
from ..errors import UserError
from ..files import check_target, write_whole
from ..page import LIMIT, Page, note
from .configuration import configuration
from .curves import efficiency, training_curves
from .dataset import dataset_sections, read_dataset, sheets_folder, title_of
from .facts import data, made_by, repeat, shown_path, summary, versions
from .runs import KINDS, LOGS, Collection, Run, is_demo, is_run, labels, read_run
from .samples import samples
from .scores import evaluation
from .validation import validation

FAULTS = 20  # that are listed


def write_report(folders: Sequence[Path], out: Path | None = None, limit: int = LIMIT) -> Path:
    """Writes one self-contained page and returns its path.

    folders: training runs, or demos (or other folders of runs); with two or more they are compared. out: the page;
    unset, report.html in the folder, or comparison.html in the first. limit: bytes of clips and pictures, above which
    the oldest samples are left out.

    What is damaged is left out, and said. Raises UserError where a folder is none of these, or they are not of a kind.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}: give one that training or `make demo` wrote")
    single = [is_run(folder) for folder in folders]
    if any(single) and not all(single):
        raise UserError(
            f"{folders[single.index(True)]} is a training run and {folders[single.index(False)]} is not: "
            "compare two runs, such as A/dit_run and B/dit_run, or two demos"
        )
    out = out or folders[0] / ("report.html" if len(folders) == 1 else "comparison.html")
    check_target(out, "--out")
    names = labels(folders) if len(folders) > 1 else [shown_path(folder) for folder in folders]
    page = Page(limit)
    if all(single):
        runs = [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]
        kind, lead = "Training run", _lead(runs)
        parts = [("", [*sections(page, runs), ("How to repeat", whole(lambda: repeat(runs)))])]
    else:
        about = _collection(folders)
        kind, lead, parts = about.title, about.lead, _whole(page, folders, names, about)
    title = f"{kind}: {names[0]}" if len(names) == 1 else " against ".join(names)
    write_whole(out, page.html(title, lead, parts, made_by()))
    return out


def _lead(runs: Sequence[Run]) -> str:
    said = []
    for run in runs:
        started = f", started {run.facts['started']}" if (run.facts or {}).get("started") else ""
        said.append(f"{run.label + ': ' if len(runs) > 1 else ''}{KINDS[run.kind]}{started}.")
    return " ".join(said)


def sections(page: Page, runs: Sequence[Run]) -> list[tuple[str, str]]:
    """All that is known of a training run, or of several side by side."""
    return [
        ("Summary", broken(runs) + whole(lambda: summary(runs))),
        ("Curves", whole(lambda: training_curves(page, runs))),
        ("Validation", whole(lambda: validation(page, runs))),
        ("Samples", whole(lambda: samples(page, runs))),
        ("Evaluation", whole(lambda: evaluation(runs))),
        ("Efficiency", whole(lambda: efficiency(runs))),
        ("Data", whole(lambda: data(runs))),
        ("Configuration", whole(lambda: configuration(runs))),
        ("Versions and machine", whole(lambda: versions(runs))),
    ]


def broken(runs: Sequence[Run]) -> str:
    """What of the folders is not whole."""
    named = [f"{run.label}: {fault}" if len(runs) > 1 else fault for run in runs for fault in run.faults]
    if not named:
        return ""
    rest = f" and {len(named) - FAULTS} more" if len(named) > FAULTS else ""
    return "".join(map(note, ["Not whole, and left out of what follows:", *named[:FAULTS]])) + (rest and note(rest))


def whole(make: Callable[[], str]) -> str:
    """A part of the page; where what it shows is not as training writes it, a word on that, and the rest stands."""
    try:
        return make()
    except Exception as error:
        return note(f"This part cannot be shown: the folder holds what training does not write ({error!r:.200})")


def write_dataset_report(place: Path, out: Path | None, transform: Transform, limit: int = LIMIT) -> Path:
    """Writes one self-contained page about a data set: a curation's folder, or a manifest. transform: what training
    makes of its clips. out: unset, report.html in the folder, or beside the manifest. Raises UserError as
    `read_dataset` does."""
    out = out or (place / "report.html" if place.is_dir() else place.with_suffix(".html"))
    check_target(out, "--out")
    page = Page(limit)
    with sheets_folder() as sheets:
        data = read_dataset(place, Path(sheets))
        title, lead = title_of(data)
        sections = [(name, whole(make)) for name, make in dataset_sections(page, data, transform)]
    write_whole(out, page.html(title, lead, [("", sections)], made_by()))
    return out


# ----------------------------------------------------------------------------------------------------- folders of runs


def _collection(folders: Sequence[Path]) -> Collection:
    """How the page presents folders of runs."""
    return DEMO if any(map(is_demo, folders)) else Collection("Training runs", "Training runs that lie in one folder.")


def _whole(
    page: Page, folders: Sequence[Path], names: Sequence[str], about: Collection
) -> list[tuple[str, list[tuple[str, str]]]]:
    """The collection's own sections, then a part for each training run; runs of the same name stand side by side."""
    inner = [sorted(path.name for path in folder.iterdir() if path.is_dir() and is_run(path)) for folder in folders]
    for folder, found in zip(folders, inner, strict=True):
        if not found and not is_demo(folder):
            raise UserError(
                f"{folder} holds neither a training run ({', '.join(LOGS)}) nor a demo (scores.json, vae_run, dit_run)"
            )
    made = [(title, whole(make)) for title, make in about.sections(page, folders, names)]
    parts = [("", made)] if made else []
    for name in dict.fromkeys([*about.runs, *(name for found in inner for name in found)]):
        heading = f"{about.runs[name]} ({name})" if name in about.runs else name
        having = [(folder, label) for folder, label, found in zip(folders, names, inner, strict=True) if name in found]
        without = [label for label, found in zip(names, inner, strict=True) if name not in found]
        if not having:
            parts.append((heading, [("Run", note(f"{name} is missing: no {' or '.join(LOGS)}"))]))
            continue
        runs = [read_run(folder / name, label if len(folders) > 1 else name) for folder, label in having]
        missing = [("Compared", note(f"{', '.join(without)} has no {name}"))] if without else []
        parts.append((heading, [*missing, *sections(page, runs)]))
    end = about.repeat or (
        lambda _: repeat([read_run(f / n, n) for f, own in zip(folders, inner, strict=True) for n in own])
    )
    return [*parts, ("How to repeat", [("", end(folders))])]
