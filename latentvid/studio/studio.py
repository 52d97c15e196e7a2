"""What the pages do, without pages: a program's values -> a clip in the gallery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.video.kinds import IMAGE_ENDINGS
from ..errors import UserError
from ..report.listing import runs_below
from .fields import command_line
from .gallery import Gallery, Item
from .jobs import Job, State, Worker
from .tabs import BY_PROGRAM

MODEL = "pipeline"  # what a run makes, by the list in which it may be chosen
MADE = {"model": MODEL, "lora": "lora", "control": "controlnet", "motion": "motion"}


@dataclass
class Studio:
    """gallery: where clips are kept. given: models and adapters that may be chosen, by list (a value of
    `fields.CHOOSERS`). runs: folders of training runs, whose products may be chosen too."""

    gallery: Gallery
    given: Mapping[str, Sequence[str]]
    runs: Sequence[Path] = ()
    worker: Worker = field(default_factory=Worker)

    def lists(self) -> dict[str, list[str]]:
        """What may be chosen, by list: what was given, and what runs have made since."""
        runs = self.folders()
        found = {}
        for name, product in MADE.items():
            made = [str(run / product) for run in runs if (run / product).is_dir()]
            found[name] = list(dict.fromkeys([*self.given.get(name, ()), *made]))
        return found

    def folders(self) -> list[Path]:
        """The training runs."""
        return list(runs_below(folder for folder in self.runs if folder.is_dir()))

    def start(self, program: str, values: Mapping[str, Any]) -> tuple[Job, list[Item]]:
        """Begins to make a clip; the list gets its item once it is made. Raises UserError."""
        if program not in BY_PROGRAM:
            raise UserError(f"{program[:40]} is no program of the studio")
        output = self.gallery.new(".png" if self._is_picture(program, values) else ".mp4")
        words = command_line(BY_PROGRAM[program].fields, values, self.lists(), self.gallery.kept)
        command = [program, *words, f"--output={output}"]
        items: list[Item] = []

        def ended(state: State) -> None:
            if state.status == 0:
                items.append(self.gallery.add(output, program, values, command, state.seconds))

        return Job(self.worker, command, ended), items

    @staticmethod
    def _is_picture(program: str, values: Mapping[str, Any]) -> bool:
        """Whether what is made is one: of a picture, or of one frame."""
        if BY_PROGRAM[program].film:
            return False
        clip = values.get("clip")
        return values.get("frames") == 1 if clip is None else Path(str(clip)).suffix in IMAGE_ENDINGS
