"""Cases of fuzz.py about what the programs keep: caches, saved encoders, run folders and their pages.

Each function takes the draw, the folder of the valid inputs and the case's own folder, and makes one case.
"""

from __future__ import annotations

import json
from pathlib import Path

from fuzz_base import encoding
from fuzz_draw import Draw, copy_tree, spoil_tensors, write_json
from fuzz_run import Case
from fuzz_training import DIT, ENCODE, EXPORT, REPORT, VAE, words_of


def cache(draw: Draw, base: Path, folder: Path) -> Case:
    """A latent cache that is not as it was written."""
    copy = copy_tree(base / "latents", folder / "latents")
    shard = sorted(copy.glob("*.safetensors"))[0]
    index = copy / "cache.json"
    kind = draw.choice(
        ("json", "json", "json", "index bytes", "shard bytes", "shard bytes", "file", "tensor", "tensor")
    )
    must: str | None = None
    names: tuple[str, ...] = (index.name, shard.name, copy.name)
    if kind == "json":
        tree, key, what = draw.json(json.loads(index.read_text()))
        write_json(index, tree)
        names = (index.name, key or index.name, "stale")
    elif kind == "index bytes":
        data, what = draw.bytes(index.read_bytes())
        index.write_bytes(data)
    elif kind == "shard bytes":
        before = shard.read_bytes()
        data, what = draw.bytes(before)
        shard.write_bytes(data)
        must = None if data == before else "fail"
    elif kind == "file":
        path = draw.choice((index, shard))
        what, must = f"{path.name} is {draw.file(path)}", "fail"
        names = (path.name, copy.name)
    else:
        what = spoil_tensors(draw, shard)
        must = "fail"
    if draw.chance(0.2):  # encoded once more, into what is there
        words = [
            "--manifest",
            str(base / "train.jsonl"),
            "--vae",
            str(base / "vae"),
            "--text-encoder",
            str(base / "t5"),
        ]
        return Case(ENCODE, [*words, "--out", str(copy), "--max-frames", "9"], f"{kind}: {what}", (*names, copy.name))
    return Case(
        DIT, [str(base / "dit.yaml"), "--run.dir=run", f"--data.latents={copy}"], f"{kind}: {what}", names, must
    )


def encoders(draw: Draw, base: Path, folder: Path) -> Case:
    """A saved autoencoder or text encoder that is not as it was written."""
    part = draw.choice(("vae", "t5"))
    copy = copy_tree(base / part, folder / part)
    path = draw.choice(sorted(p for p in copy.iterdir() if p.is_file()))
    must: str | None = None
    names: tuple[str, ...] = (path.name, copy.name)
    if path.suffix == ".safetensors" and draw.chance(0.6):
        what, must = spoil_tensors(draw, path), "fail"
        if what.endswith("type"):
            must = None
    elif path.suffix == ".json" and draw.chance(0.7):
        tree, key, what = draw.json(json.loads(path.read_text()))
        write_json(path, tree)
        names = (path.name, key or path.name, copy.name, "text encoder")
    elif draw.chance(0.5):
        what, must = draw.file(path), None if path.name == "tokenizer_config.json" else "fail"
    else:
        data, what = draw.bytes(path.read_bytes())
        path.write_bytes(data)
    folders = {"vae": base / "vae", "t5": base / "t5"} | {part: copy}
    program = draw.choice((ENCODE, ENCODE, "vae/reconstruct.py", DIT)) if part == "vae" else draw.choice((ENCODE, DIT))
    if program == DIT:
        words = [str(base / "dit.yaml"), "--run.dir=run", f"--vae={folders['vae']}", f"--text_encoder={folders['t5']}"]
        names = (*names, "stale")
    elif program == ENCODE:
        words = encoding(base, "cache", vae=folders["vae"])
        words[words.index("--text-encoder") + 1] = str(folders["t5"])
    else:
        words = [str(base / "clips/one.mp4"), "--vae", str(copy), "--output", "out.mp4"]
    return Case(program, words, f"{part}/{path.name}: {what}", names, must)


# ------------------------------------------------------------------------------------------------------ run folders


def checkpoint(draw: Draw, base: Path, folder: Path) -> Case:
    """A run folder that is not as it was written: gone on with, exported."""
    kind = draw.choice(("dit", "vae"))
    run = copy_tree(base / f"{kind}_run", folder / "run")
    steps = sorted((run / "checkpoints").iterdir())
    keeps = (run / "metrics.jsonl",)
    every = draw.chance(0.6)
    others = ("config.yaml", "run.json", "metrics.jsonl", "best.json", "validation.jsonl", "quarantine.jsonl")
    target = draw.choice((*["checkpoint"] * 5, *others))
    must: str | None = None
    if target == "checkpoint":
        name = draw.choice(sorted(p.name for p in steps[-1].iterdir()))
        act = draw.choice(("bytes", "file", "json", "link out")) if name.endswith("json") else draw.choice(
            ("bytes", "file", "link out"))  # fmt: skip
        for step in steps if every else steps[-1:]:
            what = _spoil_member(draw, step / name, act, folder)
        must = "fail" if every and (name != "manifest.json" or act == "file") else None
        if act == "link out" and not every:
            must = "say"
        names: tuple[str, ...] = (name, "checkpoint", steps[-1].name)
        what = f"{name} of {'all steps' if every else 'the last step'}: {what}"
    else:
        path = run / target
        if not path.exists():
            path.write_text(json.dumps({"path": "one.mp4", "reason": "hangs"}) + "\n")
        names = (path.name, "run.dir")
        what = f"{path.name}: " + _spoil_member(draw, path, draw.choice(("bytes", "file", "json")), folder)
        keeps = () if path.name == "metrics.jsonl" else keeps
        if path.suffix == ".yaml":
            names = (*names, *words_of((base / f"{kind}.yaml").read_text()))
    if draw.chance(0.35):
        words = [str(run), "out", *draw.choice(([], [], ["--raw"], ["--best"], ["--step", "2"], ["--step", "1"]))]
        must = None if words[-1] in ("1", "--best") or target != "checkpoint" else must
        return Case(EXPORT, words, what, (*names, "best.json"), must and ("fail" if every else "say"), keeps)
    steps_to = draw.choice(("3", "3", "2"))
    words = [str(base / f"{kind}.yaml"), f"--run.dir={run}", f"--train.steps={steps_to}"]
    words += ["--validation.every=2"] if kind == "dit" else []
    return Case(DIT if kind == "dit" else VAE, words, what, names, must if steps_to == "3" else None, keeps)


def _spoil_member(draw: Draw, path: Path, act: str, folder: Path) -> str:
    if act == "json" and path.suffix in (".json", ".yaml"):
        if path.suffix == ".yaml":
            act = "bytes"
        else:
            tree, _, what = draw.json(json.loads(path.read_text()))
            write_json(path, tree)
            return what
    if act == "link out":
        outside = folder / f"outside-{path.parent.name}-{path.name}"
        path.rename(outside)
        path.symlink_to(outside)
        return "a link out of the folder"
    if act == "file":
        return draw.file(path)
    before = path.read_bytes()
    data, what = draw.bytes(before)
    while data == before:
        data, what = draw.bytes(before)
    path.write_bytes(data)
    return what


def report(draw: Draw, base: Path, folder: Path) -> Case:
    """The page of a run folder of which one or two files are not what they were."""
    run = copy_tree(base / draw.choice(("dit_run", "vae_run")), folder / "run")
    write_json(run / "scores.json", {"scores": {}, "clips": 3})
    files = sorted(
        p for p in run.rglob("*") if p.is_file() and "checkpoints" not in p.parts and p.suffix != ".safetensors"
    )
    done = []
    for path in draw.sample(files, draw.choice((1, 1, 2))):
        if path.suffix == ".jsonl" and draw.chance(0.6):
            lines = path.read_text().splitlines()
            at = draw.randrange(len(lines))
            tree, _, what = draw.json(json.loads(lines[at]))
            path.write_text("\n".join([*lines[:at], json.dumps(tree), *lines[at + 1 :]]) + "\n")
        else:
            what = _spoil_member(draw, path, draw.choice(("bytes", "file", "json", "json")), folder)
        done.append((path.name, what))
    names = (*(name for name, _ in done), "run")
    return Case(REPORT, [str(run), "--out", "page.html"], "; ".join(f"{n}: {w}" for n, w in done), names)


AREAS = {
    "cache": (8, cache),
    "encoder": (7, encoders),
    "checkpoint": (12, checkpoint),
    "report": (9, report),
}
