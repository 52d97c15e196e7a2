"""How fuzz.py spoils things: numbers, JSON, bytes, and what stands where a file should."""

from __future__ import annotations

import copy
import csv
import json
import os
import random
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from safetensors import safe_open
from safetensors.torch import load_file, save_file

NOT_FINITE = ("nan", "inf", "-inf", "1e400", "NaN", "Infinity")
TOO_LONG = (str(2**63), str(-(2**63) - 1), "1" + "0" * 30, "9" * 5000)
HUGE = ("100000000000", "99999999999999999", str(2**63 - 1))
NEGATIVE = ("-1", "-5", "-2147483649", "-1e30")
NO_NUMBER = ("abc", "[]", "{}", "1,5", "0x10", "1_0x", "--", "١e", "true,", "1e", "9 9")
ODD = ("0", "-0.0", "1e-320", "0.5", "1", "2", "3", "2147483648", "4294967296", "true", "null", "", " ", "1e5", "٣")
TEXTS = (
    "",
    " ",
    "\t",
    "a" * 3000,
    "\x07\x1b[31m",
    "naïve 漢字 🦆",
    "\u202eabc",
    "../..",
    "/",
    "null",
    "\ufeff",
    "a\nb",
)
FILE_KINDS = ("empty", "missing", "fifo", "folder", "dangling link", "link to itself", "/dev/zero", "socket")


class Draw(random.Random):
    """Seeded choices."""

    def chance(self, share: float) -> bool:
        return self.random() < share

    def number(self, whole: bool) -> tuple[str, bool]:
        """A text where a number should be, and whether no number of this project can be so."""
        kinds = [
            (NOT_FINITE, True),
            (TOO_LONG, whole),
            (HUGE, False),
            (NEGATIVE, whole),
            (NO_NUMBER, True),
            (ODD, False),
        ]
        values, bad = self.choice(kinds)
        return self.choice(values), bad

    def value(self) -> Any:
        """A JSON value of any type."""
        pool: list[Any] = [None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, 0.5, -0.5, 1e308, float("nan")]
        pool += [float("inf"), -float("inf"), [], {}, [[]], [None], ["os", "system"], {"a": {"b": []}}, "7", "nan"]
        pool += [10**7, 10**11, [10**9] * 3, ["a"] * 1000, *TEXTS]
        return copy.deepcopy(self.choice(pool))

    def bytes(self, data: bytes) -> tuple[bytes, str]:
        """The same with some of it flipped, lost, repeated or new, and what was done."""
        kind = self.choice(("flip", "flip", "flip", "truncate", "zero", "insert", "repeat", "drop", "head", "noise"))
        size, at = len(data), self.randrange(max(1, len(data)))
        run = min(size - at, self.choice((1, 4, 16, 256, 4096)))
        if kind == "flip":
            spoilt = bytearray(data)
            for _ in range(self.choice((1, 1, 3, 30))):
                where = self.randrange(max(1, size))
                spoilt[where : where + 1] = bytes([spoilt[where] ^ (1 << self.randrange(8))]) if size else b""
            return bytes(spoilt), "bits flipped"
        if kind == "truncate":
            return data[:at], f"cut to {at} bytes"
        if kind == "zero":
            return data[:at] + bytes(run) + data[at + run :], f"{run} zeros at {at}"
        if kind == "insert":
            return data[:at] + self.randbytes(run) + data[at:], f"{run} random bytes inserted at {at}"
        if kind == "repeat":
            return data[: at + run] + data[at:], f"{run} bytes twice at {at}"
        if kind == "drop":
            return data[:at] + data[at + run :], f"{run} bytes lost at {at}"
        if kind == "head":
            return self.randbytes(min(32, size)) + data[32:], "a random head"
        return self.randbytes(min(size, 4096)), "random bytes"

    def file(self, path: Path, kinds: tuple[str, ...] = FILE_KINDS) -> str:
        """Puts something else instead of a file; what."""
        kind = self.choice(kinds)
        path.unlink()
        if kind == "empty":
            path.touch()
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "dangling link":
            path.symlink_to("nowhere-at-all")
        elif kind == "link to itself":
            path.symlink_to(path.name)
        elif kind == "/dev/zero":
            path.symlink_to("/dev/zero")
        elif kind == "socket":
            os.mknod(path, 0o140666)
        return kind

    def json(self, tree: Any) -> tuple[Any, str, str]:
        """One value of a JSON tree replaced, lost, or added: the tree, the key, and what was done."""
        tree = copy.deepcopy(tree)
        places = [(tree, key, str(key)) for key in _keys(tree)]
        for node, key, name in places:  # grows
            child = node[key]
            inner = list(_keys(child))[:50]
            places += [(child, k, str(k) if isinstance(child, dict) else name) for k in inner]
        if not places or self.chance(0.03):
            return self.value(), "", "another value in all"
        node, key, name = self.choice(places)
        act = self.random()
        if act < 0.15 and isinstance(node, dict):
            del node[key]
            return tree, name, f"no {name}"
        if act < 0.2 and isinstance(node, dict):
            node["unheard_of"] = self.value()
            return tree, "unheard_of", "an unknown key"
        node[key] = self.value()
        return tree, name, f"{name} = {json.dumps(node[key])[:40]}"


def _keys(node: Any) -> list[Any]:
    return list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []


def write_json(path: Path, tree: Any) -> None:
    path.write_text(json.dumps(tree), encoding="utf-8")


def copy_tree(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


def png_of(width: int, height: int, rows: int) -> bytes:
    """A one-bit PNG of that size in its head, with so many rows of white."""
    packed = zlib.compress((b"\0" + b"\xff" * -(-min(width, 1 << 17) // 8)) * rows, 1)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), (b"IDAT", packed), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def spoil_tensors(draw: Draw, file: Path) -> str:
    """One tensor of a file lost, of NaNs, or of another shape or type; the head is kept. What was done."""
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        head = opened.metadata()
    name = draw.choice(sorted(tensors))
    value = tensors[name]
    kind = draw.choice(("lost", "NaN", "inf", "shape", "type", "one more axis"))
    if kind == "lost":
        del tensors[name]
    elif kind in ("NaN", "inf"):
        value = value.clone().float() if not value.is_floating_point() else value.clone()
        value.view(-1)[draw.randrange(value.numel())] = float(kind)
        tensors[name] = value
    elif kind == "shape":
        tensors[name] = value.flatten()[: max(0, value.numel() // 2)].clone()
    elif kind == "type":
        tensors[name] = value.bool()
    else:
        tensors[name] = value[None].clone()
    save_file(tensors, file, metadata=head)
    return f"{name}: {kind}"


def write_table(path: Path, rows: list[dict[str, Any]], draw: Draw | None) -> str:
    """Writes rows; with a draw in a shape that no table has. What was done."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if path.suffix == ".parquet":
        if draw:
            pyarrow.parquet.write_table(pyarrow.table({"path": [[1]], "caption": [{"a": 1}]}), path)
            return "columns of lists"
        columns = {c: [None if row.get(c) is None else str(row.get(c)) for row in rows] for c in columns}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
        return "texts in all columns"
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows)
        shapes = {
            "one list": json.dumps(rows),
            "no line ends": text.replace("\n", ""),
            "deep": text + '{"path": ' + "[" * 100_000 + "\n",
            "a long line": text + '{"path": "' + "a" * 5_000_000 + '"}\n',
            "a long number": text + '{"path": "a", "caption": "b", "frames": ' + "9" * 6000 + "}\n",
            "the same key twice": text + '{"path": "a", "path": 7, "caption": "x"}\n',
            "rows twice": text * 3,
            "half a surrogate": text + '{"path": "\\ud800.mp4", "caption": "\\udfff"}\n',
            "other columns": text.replace("caption", "Caption "),
        }
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        with path.open("w", newline="", encoding="utf-8", errors="replace") as file:
            writer = csv.DictWriter(file, columns, delimiter=mark)
            writer.writeheader()
            writer.writerows(rows)
        text = path.read_text()
        shapes = {
            "an open quote": text + '"a',
            "too many cells": text + mark.join("abcdefghij") + "\n",
            "the head alone": text.split("\n")[0],
            "a column twice": f"path{mark}path{mark}caption\na{mark}b{mark}c\n",
            "no head": text.split("\n", 1)[1],
            "a long cell": text + f"{'a' * 500_000}{mark}b\n",
            "null characters": text + f"a\0{mark}\0\n",
            "empty lines": text.replace("\n", "\n\n\n"),
        }
    if draw is None:
        path.write_text(text, encoding="utf-8", errors="replace")
        return "as it is"
    name = draw.choice(tuple(shapes))
    path.write_text(shapes[name], encoding="utf-8")
    return name
