"""Which data a run began with, in a few hundred bytes: digests of its samples' names and captions, in runs of samples.

Sizes are not in it: the plan keeps those. Where a folder lies is not either: names are relative to the manifest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

PARTS = 64  # runs of samples, each with a digest of its own: what differs is found to within one


def identify(
    columns: Mapping[str, Sequence[str]], parts: Sequence[int], first: Sequence[int] | None = None
) -> dict[str, Any]:
    """Of columns of texts, all of one length: {"samples": N, "prints": {column: digests}, "parts": counts}.

    parts: samples of each source, one after the other. first: only so many of each (where there are).
    """
    counts = list(parts if first is None else map(min, first, parts))
    count, starts = sum(counts), np.cumsum([0, *parts])
    at = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, counts, strict=False)])
    return {
        "samples": count,
        "prints": {name: [_print(texts, at[a:b]) for a, b in _runs(count)] for name, texts in columns.items()},
        "parts": counts,
    }


def appended(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[int] | None:
    """Of each source, how many samples there were, where there are more now; else None."""
    then = before.get("parts") or ([before["samples"]] if len(now["parts"]) == 1 else [])
    more = len(then) == len(now["parts"]) and all(t <= n for t, n in zip(then, now["parts"], strict=True))
    return then if more and then != now["parts"] else None


def _runs(count: int) -> list[tuple[int, int]]:
    edges = np.linspace(0, count, min(PARTS, count) + 1).astype(int).tolist()
    return list(zip(edges, edges[1:], strict=False))


def _print(texts: Sequence[str], at: np.ndarray) -> str:
    digest = blake2b(digest_size=8)
    for i in at.tolist():
        text = texts[i].encode("utf-8", "surrogatepass")
        digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What differs, by column and samples, as an error may say it; None where nothing does."""
    if not before["prints"].keys() & now["prints"].keys():
        return f"they were known by {', '.join(before['prints'])}, are by {', '.join(now['prints'])}"
    if before["samples"] != now["samples"]:
        return f"there were {before['samples']} samples, there are {now['samples']}"
    for name, digests in now["prints"].items():
        old = before["prints"].get(name)
        if old is None or len(old) != len(digests):
            continue  # of another version, which did not look at it
        if name == "entries" and "contents" in before["prints"]:
            continue  # of a cache: the other says the same, of each entry alone
        changed = [run for run, a, b in zip(_runs(now["samples"]), old, digests, strict=True) if a != b]
        if changed:
            runs = ", ".join(str(a) if b - a == 1 else f"{a} to {b - 1}" for a, b in changed[:3])
            more = f" and of {len(changed) - 3} more runs of samples" if len(changed) > 3 else ""
            return f"the {name} of sample{'' if runs.isdigit() else 's'} {runs}{more} (of {now['samples']}) changed"
    return None
