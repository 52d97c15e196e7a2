"""The README, and the commands of the documents: those for clips of one's own are run as they stand there, in a folder
that holds nothing else."""

import contextlib
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from latentvid.__main__ import main
from latentvid.data.video.reading import probe
from latentvid.data.video.writing import write_video

ROOT = Path(__file__).parents[1]
SMALL = {  # beside what the README says: so that it takes seconds
    "vae/train_vae.py": "--model.widths=[8,8,16] --model.encoder_depths=[1,1,1] --model.decoder_depths=[1,1,1] "
    "--train.steps=2 --data.tokens_per_pack=1280",
    "train/train_dit.py": "--model.width=32 --model.depth=1 --model.heads=2 --train.steps=2 --data.tokens_per_pack=512",
}


def commands(page: str) -> Iterator[list[str]]:
    """The words of each command of a page of docs/."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if line.strip().startswith(".venv/bin/"):
            yield shlex.split(line)


OF_PUBLISHED = {
    "train/train_dit.py": "--model.dtype=fp32 --train.mixed_precision=no --train.steps=2 --data.tokens_per_pack=1024",
    "inference/t2v.py": "--frames 5 --height 32 --width 32 --steps 2",
}


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 120 and [line for line in lines if len(line) > 120] == []


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)(#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link, _ in links if not (page.parent / link).exists()] == []


@pytest.fixture
def my_clips(tmp_path, monkeypatch) -> Path:
    """The folder in which the README's commands run, with four clips and a picture in my_clips/."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    noise = torch.Generator().manual_seed(0)
    for i, (frames, name) in enumerate([(9, "a.mp4"), (13, "b.mp4"), (9, "c.mp4"), (20, "d.mp4"), (1, "e.png")]):
        clip = torch.randint(0, 255, (frames, 136, 144 + 16 * i, 3), dtype=torch.uint8, generator=noise)
        write_video(tmp_path / "my_clips" / name, clip, 8)
        (tmp_path / "my_clips" / name).with_suffix(".txt").write_text(f"a red {i} moves up")
    return tmp_path


def test_clips_of_ones_own_become_a_pipeline(run, my_clips, tiny_t5, monkeypatch):
    seen = []
    for program, *words in commands("training.md"):
        words = [word.replace("google/flan-t5-base", str(tiny_t5)) for word in words]
        assert program == ".venv/bin/python"
        if words[0] == "-m":
            module, *rest = words[1:]
            monkeypatch.setattr(sys, "argv", [module, *rest])
            with pytest.raises(SystemExit) as stop:
                runpy.run_module(module, run_name="__main__")
            assert not stop.value.code
            seen.append(module)
            continue
        script, *rest = words
        status, _, said = run(script, *rest, *SMALL.get(script, "").split())
        assert status == 0, said
        seen.append(script)
    assert seen == ["latentvid.data.manifest", "vae/train_vae.py", "vae/encode_latents.py", "train/train_dit.py"]
    output = my_clips / "made.mp4"
    model = ("--model", "runs/mine/dit_run/pipeline", "--prompt", "a red 7", "--output", output)
    assert run("inference/t2v.py", *model, "--frames", 9, "--height", 64, "--width", 96, "--steps", 1)[0] == 0
    assert (probe(output).frames, probe(output).width) == (9, 96)


def test_the_worked_example_on_a_laptop(my_clips, tiny_t5, monkeypatch):
    """Its commands but for curation, which needs Ray and has tests of its own: on a manifest of four clips."""
    for file in sorted((my_clips / "my_clips").glob("*.mp4")):
        write_video(file, torch.randint(0, 255, (20, 64, 112, 3), dtype=torch.uint8), 12)
    small = {
        "train-vae": "--model.widths=[8,8,8] --train.steps=2 --samples.every=0",
        "train-dit": "--model.width=32 --model.depth=1 --model.heads=2 --train.steps=2 --samples.every=0",
        "t2v": "--steps=1",
    }

    def latentvid(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["latentvid", *words])
        with contextlib.suppress(SystemExit):
            main()

    latentvid("manifest", "my_clips", "runs/laptop/curated/train.jsonl")
    text = re.sub(r"\\\n", " ", (ROOT / "docs/laptop.md").read_text(encoding="utf-8"))
    text = text.replace("train.parquet", "train.jsonl").replace("google/flan-t5-small", str(tiny_t5))
    lines = [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("    latentvid ")]
    assert [words[0] for words in lines] == ["curate", "report", "train-vae", "encode", "train-dit", "t2v"]
    for words in lines[2:]:
        latentvid(*words, *small.get(words[0], "").split())
    assert (probe(my_clips / "clip.mp4").height, probe(my_clips / "clip.mp4").width) == (64, 112)


@pytest.mark.parametrize(("name", "kind", "fps"), [("wan", "wan", 16), ("ltx", "ltx_condition", 25)])
def test_a_published_model_is_tuned_on_clips_of_ones_own(name, kind, fps, run, my_clips, repository, monkeypatch):
    """On a small random one instead of that which the first command fetches; clips of as many frames a second."""
    (my_clips / name).symlink_to(repository(kind))
    for file in sorted((my_clips / "my_clips").glob("*.mp4")):
        write_video(file, torch.randint(0, 255, (9, 64, 96, 3), dtype=torch.uint8), fps)
    for _, *words in commands(f"tune_{name}.md"):
        if words[0] == "-m":
            monkeypatch.setattr(sys, "argv", words[1:])
            with pytest.raises(SystemExit) as stop:
                runpy.run_module(words[1], run_name="__main__")
            assert not stop.value.code
            continue
        status, _, said = run(*words, *OF_PUBLISHED.get(words[0], "").split())
        assert status == 0, said
        begun = (my_clips / f"runs/{name}/tuned").exists()
        assert begun == (words[0] != "vae/encode_latents.py" and "--dry-run" not in words)
    assert (my_clips / f"runs/{name}/tuned/lora/pytorch_lora_weights.safetensors").is_file()
    assert (probe(my_clips / f"{name}.mp4").frames, probe(my_clips / f"{name}.mp4").width) == (5, 32)
