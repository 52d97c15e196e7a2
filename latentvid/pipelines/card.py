"""The model card of a saved pipeline: README.md, as the hub shows it, of what the folder itself says."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import create_repo, upload_folder

from ..errors import UserError, brief
from ..files import write_whole
from ..weights import read_object, shapes_in
from ..words import counted

CARD, SAMPLES = "README.md", "samples"
MARK = "<!-- written by latentvid: edit freely, and remove this line so that it is kept -->"
PUSHED = ("commit_message", "private", "token", "create_pr")  # options of an upload
KINDS = 10  # of clips that are listed, those with the most
PICTURES = (".png", ".gif", ".jpg", ".webp")
CLIPS = (".mp4", ".webm")
_LICENSE = re.compile(r"[\w.+-]{1,64}")


def write_card(folder: Path, license: str | None = None, samples: Sequence[Path] = ()) -> None:
    """Writes README.md into a pipeline's folder, with copies of the samples in `samples/`.

    A README.md there that this did not write stays. license: of the weights, by the hub's identifier, such as
    apache-2.0 (None: the card says that nothing is stated). samples: pictures and clips. Raises UserError for a license
    that is no identifier, and for a sample that is not there or of another kind, before anything is written.
    """
    check_card(license, samples)
    card = folder / CARD
    if card.exists() and MARK not in card.read_text(encoding="utf-8", errors="replace"):
        return
    names = []
    for number, sample in enumerate(samples, 1):
        (folder / SAMPLES).mkdir(exist_ok=True)
        names.append(f"{SAMPLES}/{number}{sample.suffix.lower()}")
        shutil.copyfile(sample, folder / names[-1])
    write_whole(card, text_of(folder, license, names))


def check_card(license: str | None, samples: Sequence[Path]) -> None:
    """Raises UserError for what `write_card` refuses."""
    if license is not None and not _LICENSE.fullmatch(license):
        raise UserError(f"license={license!r}: give an identifier as the hub has it, such as apache-2.0 or other")
    for sample in samples:
        if not sample.is_file() or sample.suffix.lower() not in PICTURES + CLIPS:
            raise UserError(f"sample {sample}: must be a file that ends in {', '.join(PICTURES + CLIPS)}")


def license_of(folder: Path, license: str) -> None:
    """Writes the card again with this license, and the samples that are there."""
    held = sorted((folder / SAMPLES).glob("*"))
    with tempfile.TemporaryDirectory() as kept:
        write_card(folder, license, [Path(shutil.copy(sample, kept)) for sample in held])


def upload(
    folder: Path,
    repo_id: str,
    *,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    create_pr: bool = False,
) -> str:
    """Uploads a pipeline's folder to the hub; the commit's address. Raises UserError where the hub does not take it."""
    try:
        repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        message = commit_message or "Upload a pipeline of latentvid"
        done = upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message=message, token=token, create_pr=create_pr
        )
    except Exception as error:  # the hub's client raises its HTTP library's own errors, which differ by version
        raise UserError(
            f"{repo_id} cannot be uploaded to ({brief(error)}): log in with `hf auth login`, or give a token that may "
            "write there"
        ) from error
    return str(done)


def text_of(folder: Path, license: str | None, samples: Sequence[str]) -> str:
    """The card's text. samples: names below the folder."""
    index = read_object(folder / "model_index.json")
    parameters = {part: _parameters(folder / part) for part in ("transformer", "vae", "text_encoder")}
    head = ["---", "library_name: diffusers", "pipeline_tag: text-to-video", "tags:", "- latentvid", "- text-to-video"]
    head += [f"license: {license}"] * (license is not None) + ["---", "", MARK, ""]
    size = f"{index.get('height')} x {index.get('width')}"
    sizes = ", ".join(f"{part} {count / 1e6:,.1f}M" for part, count in parameters.items() if count)
    levels = index.get("guidance_interval")
    within = f" at noise levels {levels[0]:g} to {levels[1]:g}" if levels else ""
    body = [
        "# Text to video",
        "",
        f"A latent video diffusion model, trained with latentvid. By default it makes {index.get('frames')} frames of "
        f"{size} pixels at {index.get('fps'):g} frames a second, in {index.get('steps')} steps with guidance "
        f"{index.get('guidance'):g}{within}. Parameters: {sizes}.",
        "",
        "## How to load",
        "",
        "    pip install latentvid",
        '    latentvid t2v --model THIS_FOLDER_OR_HUB_NAME --prompt "..." --output clip.mp4',
        "",
        "```python",
        "from diffusers.utils import export_to_video",
        "from latentvid.pipelines.latent_video import LatentVideoPipeline",
        "",
        'pipeline = LatentVideoPipeline.from_pretrained("THIS_FOLDER_OR_HUB_NAME")',
        f'frames = pipeline("...", num_frames={index.get("frames")}).frames[0]',
        f'export_to_video(frames, "clip.mp4", fps={index.get("fps"):g})',
        "```",
        "",
        "## Training data",
        "",
        *_data(index.get("trained")),
        "",
    ]
    if samples:
        body += ["## Samples", "", *(_shown(name) for name in samples), ""]
    said = f"The weights are under {license}." if license else "Not stated: ask who trained it before you use it."
    return "\n".join([*head, *body, "## Licence", "", said, ""])


def _parameters(part: Path) -> int:
    files = sorted(part.glob("*.safetensors"))
    total = 0
    for shape in (shapes_in(files) if files else {}).values():
        count = 1
        for side in shape:
            count *= side
        total += count
    return total


def _data(trained: Sequence[Mapping[str, Any]] | None) -> list[str]:
    """What the model was trained on, as a table."""
    if not trained:
        return ["The folder does not say what it was trained on."]
    kinds = sorted(trained, key=lambda kind: -kind["count"])
    clips = sum(kind["count"] for kind in kinds if kind["frames"] > 1)
    pictures = sum(kind["count"] for kind in kinds if kind["frames"] == 1)
    lines = [f"{counted(clips, 'clip')} and {counted(pictures, 'picture')}, by size and length:", ""]
    lines += ["| samples | frames | height | width | frames a second |", "|---|---|---|---|---|"]
    for kind in kinds[:KINDS]:
        rate = f"{kind['fps']:g}" if kind.get("fps") else ""
        lines.append(f"| {kind['count']:,} | {kind['frames']} | {kind['height']} | {kind['width']} | {rate} |")
    return lines + [f"| | and {len(kinds) - KINDS} more kinds | | | |"] * (len(kinds) > KINDS)


def _shown(name: str) -> str:
    if name.endswith(CLIPS):
        return f'<video src="{name}" controls loop muted></video>'
    return f"![sample]({name})"
