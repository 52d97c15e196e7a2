"""Cases of fuzz.py about training: configurations, tables, media, caches, run folders.

Each function takes the draw, the folder of the valid inputs and the case's own folder, and makes one case.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fuzz_base import CLIPS, encoding
from fuzz_draw import NEGATIVE, NOT_FINITE, TEXTS, Draw, copy_tree, write_table
from fuzz_run import Case

from latentvid.config.schema import DitConfig, VaeConfig
from latentvid.diffusion.scheduler import LatentVideoScheduler
from latentvid.models.autoencoder import CausalVideoAutoencoder
from latentvid.models.transformer import VideoDiT

DIT, VAE, ENCODE = "train/train_dit.py", "vae/train_vae.py", "vae/encode_latents.py"
EXPORT, REPORT, SCORE = "-m latentvid.training.export", "-m latentvid.report", "-m latentvid.evaluation"
MANIFEST = "-m latentvid.data.manifest"

# ---------------------------------------------------------------------------------------------------- configurations


# what means nothing without at least one
NOT_NONE = ("steps", "patch", "width", "depth", "heads", "latent_channels", "max_frames", "tokens_per_pack", "bins")
NOT_NONE = (*NOT_NONE, "packs_per_step", "statistics_samples", "samples", "frames", "height", "rope_theta", "shift")


def _leaves(cls: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every key of a configuration with its type, as a text."""
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from _leaves(hint, f"{prefix}{name}.")
        elif name in {f.name for f in dataclasses.fields(cls)}:
            yield f"{prefix}{name}", getattr(hint, "__name__", str(hint)) if isinstance(hint, type) else str(hint)


def _arguments_of(cls: type, section: str) -> Iterator[tuple[str, str]]:
    for name, parameter in inspect.signature(cls.__init__).parameters.items():
        if name not in ("self", "args", "kwargs"):
            yield f"{section}.{name}", str(parameter.annotation)


def _configuration_key(draw: Draw, base: Path, folder: Path, dit: bool) -> Case:
    cls, model = (DitConfig, VideoDiT) if dit else (VaeConfig, CausalVideoAutoencoder)
    keys = [*_leaves(cls), *_arguments_of(model, "model")]
    keys += list(_arguments_of(LatentVideoScheduler, "scheduler")) if dit else []
    key, kind = draw.choice([(key, kind) for key, kind in keys if key not in ("model", "scheduler", "loss.critic")])
    plain = kind.replace("typing.", "")
    must: str | None = None
    if "tuple" not in plain and ("int" in plain or "float" in plain) and "str" not in plain:
        value, bad = draw.number(whole="float" not in plain)
        bad = bad and not (value == "0x10" and key.startswith(("model.", "scheduler.")))  # YAML's 16
        must = "fail" if bad or (value == "0" and key.split(".")[-1] in NOT_NONE) else None
    elif "tuple" in plain and ("int" in plain or "float" in plain):
        value = draw.choice(("[nan]", "[0.9, 2.0]", "[-1, -1]", "[inf, 0.9]", "[[]]", "{}", "7", "[a, b]", "[1e400]"))
        must = "fail" if value in ("[nan]", "[inf, 0.9]", "[1e400]", "[a, b]", "[[]]", "{}") else None
    elif "bool" in plain:
        value = draw.choice(("maybe", "2", "[]", "nan", "1", "yes"))
        must = "fail" if value in ("maybe", "2", "[]", "nan") else None
    else:
        value = _text_value(draw, folder)
    words = [str(base / ("dit.yaml" if dit else "vae.yaml"))]
    section = key.split(".")[0]
    if section in ("validation", "samples") and key.split(".")[1] != "every":
        words.append(f"--{section}.every=1")
    words.append(f"--{key}={value}")
    # without end, or longer than a case may take: a loader process starts in some 10 s
    endless = key in ("train.steps", "train.max_bad_steps", "data.workers") or key.startswith("samples")
    if key != "run.dir":
        words.append("--run.dir=run")
    if key != "run.dry_run" and (endless or draw.chance(0.5)):
        words.append("--dry-run")
    return Case(
        DIT if dit else VAE,
        words,
        f"{key}={value[:60]}",
        (key.split(".")[-1], key.replace("_", " "), key.split("_")[-1]),
        must,
    )


def _text_value(draw: Draw, folder: Path) -> str:
    """Something where a text, a path or a mapping should be."""
    path = folder / "thing.jsonl"
    path.touch()
    draw.file(path)
    pool = [str(path)] * 3 + ["nan", "-1", "[]", "{a: 1}", "{}", "null", "x" * 400, "a/" * 200, "/proc/self/mem", "/"]
    pool += ["/dev/stdin", "gone", "gone/else", "os", "[[[[[[", "!!python/object:os.system x", *TEXTS]
    return draw.choice(pool)


def dit_key(draw: Draw, base: Path, folder: Path) -> Case:
    """One key of the transformer's configuration."""
    return _configuration_key(draw, base, folder, dit=True)


def vae_key(draw: Draw, base: Path, folder: Path) -> Case:
    """One key of the autoencoder's."""
    return _configuration_key(draw, base, folder, dit=False)


def yaml_file(draw: Draw, base: Path, folder: Path) -> Case:
    """A configuration file that is not one."""
    dit = draw.chance(0.5)
    text = (base / ("dit.yaml" if dit else "vae.yaml")).read_text()
    path = folder / "config.yaml"
    path.write_text(text)
    must = "fail"
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
    )
    whole = {
        "a bomb of links": text + bomb,
        "a bomb in the model": text.replace("model:", "model:\n  x: &x {y: 1}\n" + "  z: *x\n"),
        "deep brackets": text + "model2: " + "[" * 20_000,
        "deep maps": text + "deep: " + "{a: " * 3000 + "1" + "}" * 3000,
        "a Python object": text + "log: !!python/object/apply:os.system ['touch planted']\n",
        "a list": "- a\n- b\n",
        "a number": "7\n",
        "nothing": "",
        "two documents": text + "---\n" + text,
        "a tab": text.replace("  ", "\t", 1),
        "an unknown key": text + "optimm: {lr: 1}\n",
        "a number as key": text + "7: 8\n",
        "a list as key": text + "? [a, b]\n: 8\n",
        "itself": text + "log: &log\n  trackers: *log\n",
        "a long number": text.replace("0.001", "9" * 5000),
        "a control character": text + "\x07: 1\n",
        "a merge of itself": text + "log: &l\n  <<: *l\n",
    }
    kind = draw.choice((*whole, "bytes", "bytes", "utf-16", "latin", "file", "file"))
    if kind in whole:
        path.write_text(whole[kind])
    elif kind == "utf-16":
        path.write_text(text, encoding="utf-16")
        must = None
    elif kind == "latin":
        path.write_bytes(text.encode() + b"log: {project: \xe9\xff}\n")
    elif kind == "file":
        kind = draw.file(path)
    else:
        data, kind = draw.bytes(path.read_bytes())
        path.write_bytes(data)
        must = None
    words = [str(path), "--run.dir=run", "--dry-run"]
    names = ("config.yaml", "optimm", "deep", "model", "log", "trackers", "lr", "key", "text encoder", *words_of(text))
    return Case(DIT if dit else VAE, words, f"config.yaml: {kind}", names, must)


def words_of(text: str) -> list[str]:
    return [line.strip().split(":")[0] for line in text.splitlines() if ":" in line]


def grammar(draw: Draw, base: Path, folder: Path) -> Case:
    """A command line that is none."""
    bad = draw.choice((
        "--optim.lr", "--optim=3", "--optim.lr.x=3", "--=", "--.=1", "--optim.=1", "--optim..lr=1", "--lr=1", "-x", "-",
        "--optim.lr=1=2", "--optim.lr:1", "--Optim.lr=1", "--model.widht=8", "--model.x.y=1", "--data={}", "--data=7",
        "--model=[]", "--model=7", "--run={dir: [a]}", "--optim.lr=\udcff", "--scheduler.__class__=1",
    ))  # fmt: skip
    words = [str(base / "dit.yaml"), "--run.dir=run", "--dry-run", bad]
    names = tuple(part for part in bad.strip("-").replace("=", ".").split(".") if part) or (bad,)
    return Case(DIT, words, f"the option {bad!r}", (*names, bad), "fail")


# --------------------------------------------------------------------------------------------------------- media


def media(draw: Draw, base: Path, folder: Path) -> Case:
    """A clip or picture whose bytes are wrong, by every program that opens one."""
    clips = copy_tree(base / "clips", folder / "clips")
    name, ending = draw.choice(CLIPS)
    path = clips / f"{name}.{ending}"
    must: str | None = None
    if draw.chance(0.65):
        data, what = draw.bytes(path.read_bytes())
        path.write_bytes(data)
    elif draw.chance(0.6):
        what, must = draw.file(path), "fail"
    else:
        path.unlink()
        source = draw.choice(("huge.png", "liar.png", "train.jsonl", "vae/diffusion_pytorch_model.safetensors"))
        path = path.with_suffix(".png") if source.endswith("png") else path
        path.write_bytes((base / source).read_bytes())
        what, must = f"is {source}", None if source == "huge.png" else "fail"
    what = f"{path.name}: {what}"
    program = draw.choice((MANIFEST, MANIFEST, VAE, ENCODE, "vae/reconstruct.py", SCORE, "i2v", "edit", "inpaint"))
    names = (path.name,)
    if program == MANIFEST and draw.chance(0.4):
        path = draw.choice(sorted(clips.glob("*.txt")))
        data, what = draw.bytes(path.read_bytes())
        path.write_bytes(
            draw.choice((data, "caf\u00e9".encode("utf-16"), b"\xff\xfe\x80", b"\0" * 9, b"a" * 3_000_000))
        )
        what = f"{path.name}: {what}" if draw.chance(0.6) else f"{path.name}: {draw.file(path)}"
    if program == MANIFEST:
        return Case(MANIFEST, [str(clips), "out.jsonl"], what, names, "pass")
    if program == SCORE:
        words = [str(clips), "--metrics", "flicker", "--frames", "5", "--resamples", "0", "--out", "scores"]
        return Case(SCORE, words, what, (*names, "skipped"), "say" if must else None)
    if program in (VAE, ENCODE):
        only = draw.chance(0.5)
        rows = [path] if only else [path, *(p for p in clips.iterdir() if p.suffix == ".mp4" and p != path)]
        table = [{"path": str(p), "caption": "a red 7"} for p in rows]
        (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
        must = must and ("fail" if len(rows) == 1 else "say")
        return _of_manifest(program, base, folder / "m.jsonl", what, (*names, "m.jsonl"), must)
    if program == "vae/reconstruct.py":
        return Case(program, [str(path), "--vae", str(base / "vae"), "--output", "out.mp4"], what, names, must)
    words = ["--model", str(base / "pipeline"), "--steps", "1", "--prompt", "a red 7", "--output", "out.mp4"]
    given = {
        "i2v": ["--image", str(path)],
        "edit": ["--clip", str(path), "--frames", "5", "--method", "sdedit"],
        "inpaint": ["--clip", str(base / "clips/one.mp4"), "--frames", "5", "--mask", str(path)],
    }[program]
    return Case(f"inference/{program}.py", [*words, *given], what, names, must)


def _of_manifest(program: str, base: Path, table: Path, what: str, names: tuple[str, ...], must: str | None) -> Case:
    if program == SCORE:
        words = [str(table), "--metrics", "flicker", "--frames", "5", "--resamples", "0", "--out", "scores"]
    elif program == VAE:
        words = [str(base / "vae.yaml"), "--run.dir=run", f"--data.manifest={table}"]
    else:
        words = encoding(base, "cache", table)
    return Case(program, words, what, names, must)


# ------------------------------------------------------------------------------------------------------- manifests


def manifest(draw: Draw, base: Path, folder: Path) -> Case:
    """A table of clips with wrong values, or that is none."""
    clips = base / "clips"
    row: dict[str, Any] = {"path": str(clips / "one.mp4"), "caption": "a red 7"}
    rows = [row, row | {"path": str(clips / "three.png")}, row | {"path": str(clips / "six.mkv")}]
    program = draw.choice((VAE, VAE, ENCODE, ENCODE, SCORE))
    ending = draw.choice(("jsonl", "jsonl", "csv", "tsv", "parquet"))
    path = folder / f"table.{ending}"
    names: tuple[str, ...] = ("table", "one.mp4")
    must: str | None = None
    what = ""
    kind = draw.choice(("value", "value", "value", "bytes", "file", "encoding", "shape"))
    if kind == "value":
        column = draw.choice(("path", "path", "caption", "frames", "fps", "height", "width"))
        value: Any = draw.value()
        if column == "path" and draw.chance(0.6):
            value = draw.choice(
                ("/dev/zero", "http://127.0.0.1/a.mp4", "concat:a|b", "gone.mp4", "/", "\0", "x" * 5000)
            )
        elif column in ("frames", "fps", "height", "width"):
            value = draw.choice(
                (*NOT_FINITE, *NEGATIVE, 2**31, 2**31 - 1, 2_000_000_000, 0, 1e20, 1e400, [], "x", True)
            )
            known = value in ("inf", "-inf", *NEGATIVE, 2_000_000_000, 2**31 - 1, 2**31, "x", 1e20)
            must = "say" if known else None
        alone = draw.chance(0.4)
        rows = [{**row, column: value}] if alone else [*rows, {**row, column: value}]
        what = f"{column} = {str(value)[:40]!r}"
        names = (*names, column, "bad-row", "missing", "hang", "caption", "line 4", "row 4")
        if column == "path" and alone and not (isinstance(value, str) and value in ("", " ")):
            must = "fail"
    table = write_table(path, rows, draw if kind == "shape" else None)
    what = what or table
    if kind == "bytes":
        data, what = draw.bytes(path.read_bytes())
        path.write_bytes(data)
    elif kind == "file":
        what, must = draw.file(path), "fail"
    elif kind == "encoding":
        code = draw.choice(("utf-16", "utf-8-sig", "utf-32", "latin-1"))
        text = "path,caption\n" + f"{clips / 'one.mp4'},naïve é\n" if ending == "csv" else json.dumps(row) + "\n"
        path.write_bytes(text.encode(code))
        what = code
    if draw.chance(0.1):
        other = draw.choice((".txt", ".json", "", ".JSONL", ".parquet", ".csv"))
        path = path.rename(path.with_name(f"table{other}"))
        what += f", named table{other}"
        must = must if must == "fail" else None
    return _of_manifest(program, base, path, f"{ending}: {what}", names, must)


AREAS = {
    "configuration": (12, dit_key),
    "VAE configuration": (7, vae_key),
    "YAML file": (5, yaml_file),
    "option": (2, grammar),
    "media": (13, media),
    "manifest": (12, manifest),
}
