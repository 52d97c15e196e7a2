"""Cases of fuzz.py about saved pipelines: their folders, prompts, options, output names, and scores.

Each function takes the draw, the folder of the valid inputs and the case's own folder, and makes one case.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from fuzz_base import encoding
from fuzz_draw import NEGATIVE, NOT_FINITE, TEXTS, Draw, copy_tree, spoil_tensors, write_json, write_table
from fuzz_run import Case
from fuzz_training import DIT, ENCODE, EXPORT, MANIFEST, REPORT, SCORE, VAE
from safetensors.torch import load_file, save_file

T2V, DIGITS, COMPARE = "inference/t2v.py", "-m latentvid.demo.digits", "-m latentvid.evaluation.compare"
OURS = ("model_index.json", "scheduler_config.json")
PLANTED = "from pathlib import Path\n\nPath('planted').touch()\n\n\nclass Thing:\n    pass\n"


def _t2v(model: Path, *more: str) -> list[str]:
    return ["--model", str(model), "--prompt", "a red 7 moves up", "--output", "out.mp4", *more]


def pipeline(draw: Draw, base: Path, folder: Path) -> Case:
    """A pipeline's folder that is not as it was written."""
    copy = copy_tree(base / "pipeline", folder / "pipeline")
    files = sorted(p for p in copy.rglob("*") if p.is_file())
    path = draw.choice([*files, *(p for p in files if p.name in OURS or p.name == "config.json")])
    part = path.parent.name
    must: str | None = None
    names: tuple[str, ...] = (path.name, *(() if path.parent == copy else (part, "text encoder")))
    kind = draw.choice(("value", "value", "value", "bytes", "file"))
    if path.suffix == ".safetensors" and kind == "value":
        what, must = spoil_tensors(draw, path), "fail"
        must = None if what.endswith("type") else must
    elif path.suffix == ".json" and kind == "value":
        what, names, must = _spoil_config(draw, path, folder, names)
    elif kind == "file":
        what = draw.file(path)
        must = None if path.name == "tokenizer_config.json" else "fail"
    else:
        data, what = draw.bytes(path.read_bytes())
        path.write_bytes(data)
    return Case(T2V, _t2v(copy), f"{part}/{path.name}: {what}", names, must)


def _spoil_config(
    draw: Draw, path: Path, folder: Path, names: tuple[str, ...]
) -> tuple[str, tuple[str, ...], str | None]:
    """One value of a configuration: what, what a refusal names, and how it must end."""
    tree = json.loads(path.read_text())
    act = draw.random()
    if path.name == "model_index.json" and act < 0.5:
        part = draw.choice([key for key, value in tree.items() if isinstance(value, list) and len(value) == 2])
        (folder / "fuzz_planted.py").write_text(PLANTED)
        sys.path.insert(0, str(folder))
        value = draw.choice((
            ["os", "system"], ["fuzz_planted", "Thing"], ["subprocess", "Popen"], ["builtins", "eval"], [None, None],
            ["latentvid", "errors"], ["latentvid.models.transformer", "Gone"], ["transformers", "AutoModel"], [], ["x"],
            ["diffusers", "UNet2DModel"], "os", None, {}, [7, 7], ["torch", "load"], ["../fuzz_planted", "Thing"],
        ))  # fmt: skip
        tree[part] = value
        write_json(path, tree)
        return f"{part} = {value}", (*names, part), "fail"
    numbers = [key for key, value in tree.items() if isinstance(value, int | float) and not isinstance(value, bool)]
    ours = path.name in OURS or path.parent.name in ("vae", "transformer")
    if numbers and act < 0.8:
        key = draw.choice(numbers)
        bad = draw.chance(0.5)
        wrong: tuple[Any, ...] = (float("nan"), float("inf"), -float("inf"), "x", [], {}, True, -5, 10**30)
        value = draw.choice(wrong) if bad else draw.choice((0, 1, 3, 0.5, 10**7, 10**11, None, 2**31))
        tree[key] = value
        write_json(path, tree)
        return f"{key} = {value!r}"[:60], (*names, key), "fail" if bad and ours else None
    tree, key, what = draw.json(tree)
    write_json(path, tree)
    return what, (*names, *([key] if key else [])), None


def prompts(draw: Draw, base: Path, folder: Path) -> Case:
    """A table of prompts with wrong values, or that is none."""
    ending = draw.choice(("jsonl", "jsonl", "csv", "parquet"))
    path = folder / f"prompts.{ending}"
    row: dict[str, Any] = {"prompt": "a red 7", "seed": 3}
    names: tuple[str, ...] = ("prompts.",)
    must: str | None = None
    kind = draw.choice(("value", "value", "value", "shape", "bytes", "file"))
    what = ""
    if kind == "value":
        column = draw.choice(("prompt", "negative_prompt", "seed", "frames", "height", "width", "name", "other"))
        value = draw.value()
        if column in ("seed", "frames", "height", "width") and draw.chance(0.7):
            value = draw.choice((*NOT_FINITE[:4], *NEGATIVE, 10**11, 10**30, float("inf"), "x", [], 2**31, 100_001))
            must = None if value == "nan" and ending == "parquet" else "fail"
            must = None if value in (2**31, 10**11) and column == "seed" else must
        if column == "name":
            value = draw.choice(
                (*TEXTS, "a" * 230, "漢" * 90, "con", "a:b", "a/b", "..", ".a", "a.mp4", "results.jsonl")
            )
        row = row | {column: value}
        what, names = f"{column} = {str(value)[:40]!r}", (*names, column)
    rows = [{"prompt": "a blue 3", "seed": 4}, row] if draw.chance(0.3) else [row]
    shaped = write_table(path, rows, draw if kind == "shape" else None)
    if kind == "bytes":
        data, what = draw.bytes(path.read_bytes())
        path.write_bytes(data)
    elif kind == "file":
        what, must = draw.file(path), "fail"
    if path.is_file() and not path.is_symlink() and draw.chance(0.15):
        write_table(path, [{"prompt": "a red 7", "seed": 3}], None)
        (folder / "clips").mkdir()
        index = folder / "clips" / "results.jsonl"
        write_json(index, draw.json({"file": "00000.mp4", "prompt": "a red 7", "steps": 1, "fps": 8.0})[0])
        (folder / "clips" / "00000.mp4").touch()
        what, must = f"{index.name} in the folder: " + (draw.file(index) if draw.chance(0.5) else "another"), None
        names = (index.name, "clips", "00000.mp4")
    words = ["--model", str(base / "pipeline"), "--prompts", str(path), "--output", "clips", "--steps", "1"]
    return Case(T2V, words, f"{ending}: {what or shaped}", names, must)


# ----------------------------------------------------------------------------------------------------------- options

EDIT, STYLE = "inference/edit.py", "inference/style.py"
FLOW = ("n-max", "n-min", "n-avg", "source-guidance")
COMMON = ("steps", "guidance", "guidance-rescale", "zero-init", "seed", "fps")
OPTIONS: dict[str, tuple[str, ...]] = {
    T2V: (*COMMON, "frames", "height", "width"),
    "inference/i2v.py": (*COMMON, "frames", "height", "width", "reconstruction-weight"),
    "inference/extend.py": (*COMMON, "seconds", "frames", "window", "context"),
    "inference/interpolate.py": (*COMMON, "between", "factor", "tokens-per-pack", "height"),
    EDIT: (*COMMON, "strength", "frames", "height", "window", "keyframe-every", *FLOW),
    "inference/inpaint.py": (*COMMON, "frames", "width", "window", "grow"),
    STYLE: (*COMMON, "strength", "style-scale", "frames", "width", "window", "grow"),
    "inference/long.py": (*COMMON, "seconds", "frames", "window", "context", "height"),
    ENCODE: ("max-frames", "max-area", "patch", "batch"),
    "vae/reconstruct.py": ("max-frames",),
    "vae/evaluate.py": ("frames", "max-clips", "size"),
    SCORE: ("frames", "max-clips", "pictures", "resamples"),
    EXPORT: ("step",),
    "train/train_text_encoder.py": ("steps", "seed"),
    DIGITS: ("train", "val", "seed"),
    COMPARE: ("pairs", "seed", "attention"),
}
WHOLE = ("steps", "zero-init", "seed", "frames", "height", "width", "window", "context", "between", "factor", "patch")
WHOLE = (
    *WHOLE,
    "grow",
    "keyframe-every",
    *FLOW[:3],
    "tokens-per-pack",
    "max-frames",
    "max-area",
    "batch",
    "max-clips",
    "pictures",
    "resamples",
    "step",
    "train",
    "val",
    "pairs",
    "attention",
)


def _valid(program: str, base: Path) -> list[str]:
    """Arguments with which the program works."""
    one, pictures = str(base / "clips/one.mp4"), [str(base / "clips/three.png"), str(base / "clips/five.jpg")]
    model = ["--model", str(base / "pipeline"), "--steps", "1", "--prompt", "a red 7", "--output", "out.mp4"]
    return {
        T2V: model,
        "inference/i2v.py": [*model, "--image", pictures[0]],
        "inference/extend.py": [*model, "--clip", one, "--frames", "4"],
        "inference/interpolate.py": [*model, "--first", pictures[0], "--last", pictures[1], "--between", "3"],
        EDIT: [*model, "--clip", one, "--frames", "5", "--method", "sdedit"],
        STYLE: [*model, "--clip", one, "--frames", "5", "--style", pictures[0]],
        "inference/inpaint.py": [*model, "--clip", one, "--frames", "5", "--mask", str(base / "mask.png")],
        "inference/long.py": [*model, "--frames", "9"],
        ENCODE: encoding(base, "cache"),
        "vae/reconstruct.py": [one, "--vae", str(base / "vae"), "--output", "out.mp4"],
        "vae/evaluate.py": [one, "--vae", str(base / "vae"), "--out", "scores"],
        SCORE: [str(base / "clips"), "--metrics", "flicker", "--resamples", "0", "--out", "scores"],
        EXPORT: [str(base / "dit_run"), "out"],
        "train/train_text_encoder.py": ["t5", "--captions", str(base / "labels.jsonl")],
        DIGITS: ["digits", "--train", "2", "--val", "2"],
        COMPARE: [str(base / "clips"), str(base / "others"), "--out", "page"],
    }[program]  # fmt: skip


def option(draw: Draw, base: Path, folder: Path) -> Case:
    """A number on a command line."""
    program = draw.choice(tuple(OPTIONS))
    name = draw.choice(OPTIONS[program])
    value, bad = draw.number(whole=name in WHOLE)
    words = _valid(program, base)
    if f"--{name}" in words:
        at = words.index(f"--{name}")
        del words[at : at + 2]
    if name == "seconds" and "--frames" in words:
        at = words.index("--frames")
        del words[at : at + 2]
    if name in FLOW:
        words[words.index("sdedit")] = "flow"
        words += ["--source", "a blue 3"]
    if name == "grow" and "--mask" not in words:
        words += ["--mask", str(base / "mask.png")]
    if name == "factor":
        for given in ("--first", "--last", "--between"):
            at = words.index(given)
            del words[at : at + 2]
        words += ["--clip", str(base / "clips/one.mp4")]
    said = (f"--{name}", name, name.replace("-", "_"), *([value] if len(value) > 1 else []))
    said = (*said, *{"window": ["frames"], "context": ["frames"], "between": ["frames"]}.get(name, ()))
    said = (*said, *{"height": ["pixels"], "width": ["pixels"], "max-area": ["smaller-than"]}.get(name, ()))
    return Case(program, [*words, f"--{name}={value}"], f"--{name}={value[:50]}", said, "fail" if bad else None)


def given(draw: Draw, base: Path, folder: Path) -> Case:
    """A path on a command line at which something else is, or a prompt that is no prompt."""
    program = draw.choice([program for program in OPTIONS if program != DIGITS])
    words = _valid(program, base)
    places = [i for i, word in enumerate(words) if word.startswith(str(base)) or word == "a red 7"]
    at = draw.choice(places)
    must: str | None = "fail"
    if words[at] == "a red 7":
        words[at] = draw.choice((*TEXTS, "word " * 100, "\udcff", "漢" * 50))
        return Case(program, words, f"prompt {words[at][:30]!r}", ("prompt", "text encoder", "caption"), None)
    thing = folder / f"thing{Path(words[at]).suffix}"
    thing.touch()
    what = draw.file(thing)
    words[at] = str(thing)
    if program in (SCORE, "train/train_text_encoder.py") and what == "folder":
        must = None
    return Case(program, words, f"a path: {what}", (thing.name,), must)


def name(draw: Draw, base: Path, folder: Path) -> Case:
    """A name for what is made that a file system, or another one, does not take."""
    length = draw.choice((100, 217, 230, 246, 251, 252, 255, 256, 300, 5000))
    letter = draw.choice(("a", "é", "漢", "🦆"))
    long = letter * max(1, (length - 4) // len(letter.encode()))
    (folder / "there").mkdir()
    (folder / "a-file").touch()
    os.mkfifo(folder / "pipe.mp4")
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / "full.mp4").symlink_to("/dev/full")
    stem = draw.choice((
        long, long, long, "a:b", "CON", "nul", "a b", " ", "a\nb", "a\\b", "-x", "a?*|<>", "ends.", "~", "..",
        "\udcff", "\u202ex", "there/x", "a-file/x", "a-file/x/y", "/proc/x", "/dev/full/x", "pipe", "loop", "full", "",
    ))  # fmt: skip
    ending = draw.choice((".mp4", ".mp4", ".gif", ".png", ".MP4", "", ".mp4.", ".avi"))
    program = draw.choice((T2V, T2V, "inference/i2v.py", "inference/extend.py", "vae/reconstruct.py", SCORE))
    words = _valid(program, base)
    at = words.index("--out" if program == SCORE else "--output") + 1
    words[at - 1 : at + 1] = [f"{words[at - 1]}={stem}{ending}"]
    if program == T2V and draw.chance(0.3):
        words += ["--prompt", "a blue 3"]
    said = ("output", "--out", "ending", stem[:20] if stem.strip() else "output", stem.split("/")[0] or "/proc", "/dev")
    return Case(program, words, f"output {stem[:40]!r}{ending} ({len(stem.encode(errors='replace'))} bytes)", said,
                work_first="sampling: 100%")  # fmt: skip


def scores(draw: Draw, base: Path, folder: Path) -> Case:
    """Folders of clips to be scored, tables of their captions, and what an earlier run left."""
    clips = copy_tree(base / "clips", folder / "clips")
    words = [str(clips), "--metrics", "flicker", "--resamples", "0", "--frames", "5", "--out", "scores"]
    kind = draw.choice(("captions", "rows", "metric", "real", "names"))
    if kind == "captions":
        table = folder / "captions.jsonl"
        row: dict[str, Any] = {"file": "one.mp4", "caption": "a red 7"}
        row[draw.choice(tuple(row))] = draw.value()
        what = write_table(table, [row], draw if draw.chance(0.4) else None)
        if draw.chance(0.3):
            what = draw.file(table)
        words = [words[0], *words[3:], "--captions", str(table)]  # flicker needs none
        return Case(SCORE, words, f"captions: {what}", (table.name, "one.mp4", "file"))
    if kind == "metric":
        bad = draw.choice(("", "fvdd", "nan", "../fid", "clip", "fid", "lpips", "a" * 300))
        return Case(SCORE, [*words[:2], bad, *words[3:]], f"metric {bad[:20]!r}", ("score", bad or "''"), "fail")
    if kind == "real":
        real = folder / "real.jsonl"
        real.write_text(json.dumps({"path": str(clips / "one.mp4"), "caption": "x"}) + "\n")
        data, what = draw.bytes(real.read_bytes())
        real.write_bytes(data)
        return Case(SCORE, [*words, "--real", str(real)], f"real: {what}", (real.name, "one.mp4"))
    if kind == "names":
        names = ("\udcff.mp4", "a\nb.mp4", "é" * 100 + ".mp4", "-x.mp4", "a,b.mp4", "'\".mp4", "a|b.mp4", ".hidden.mp4")
        (clips / "one.mp4").rename(clips / (chosen := draw.choice(names)))
        return Case(SCORE, words, f"a clip named {chosen[:20]!r}", (chosen[:20], "clips"), "pass")
    made = copy_tree(base / "scores", folder / "scores")
    path = draw.choice(sorted(p for p in made.rglob("*") if p.is_file()))
    if path.suffix == ".safetensors" and draw.chance(0.4):
        tensors = load_file(path)
        key = draw.choice(sorted(tensors))
        tensors[key] = tensors[key].double().flatten()[:1]
        save_file(tensors, path)
        what = f"{key} cut"
    elif draw.chance(0.5):
        what = draw.file(path)
    else:
        data, what = draw.bytes(path.read_bytes())
        path.write_bytes(data)
    return Case(SCORE, words, f"{path.name}: {what}", (path.name, "scores", "rows"))


def storage(draw: Draw, base: Path, folder: Path) -> Case:
    """A program on a disk that is full, or with few open files."""
    program = draw.choice((*OPTIONS, DIT, VAE, REPORT, MANIFEST))
    words = {
        DIT: [str(base / "dit.yaml"), "--run.dir=run"],
        VAE: [str(base / "vae.yaml"), "--run.dir=run"],
        REPORT: [str(base / "dit_run"), "--out", "page.html"],
        MANIFEST: [str(base / "clips"), "table.jsonl"],
    }.get(program) or _valid(program, base)
    if draw.chance(0.5):
        most = draw.choice((12_000, 20_000, 40_000))  # what it says must find room too
        names = ("too large", "space", "written", "write")
        return Case(program, words, f"a disk with room for {most} bytes", names, file_bytes=most)
    most = draw.choice((48, 64))
    return Case(program, words, f"{most} open files", ("open files", "ulimit"), open_files=most)


AREAS = {
    "storage": (5, storage),
    "pipeline": (16, pipeline),
    "prompts": (9, prompts),
    "number": (12, option),
    "path": (8, given),
    "output name": (7, name),
    "scores": (6, scores),
}
