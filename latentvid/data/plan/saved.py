"""What a saved place in the data must have in common with the run that goes on from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from ...errors import UserError
from ...words import counted
from .source import single

CHUNK = 1 << 20  # values at a time


def identify(
    tokens: np.ndarray, cost: np.ndarray, sizes: np.ndarray, mix: Sequence[np.ndarray], packing: Mapping[str, int]
) -> dict[str, Any]:
    """Of the plan's samples, of the reads that begin with them, of its streams, and of its options by their names."""
    together = {} if single(sizes) or (sizes == 1).all() else {"reads": _print([sizes])}
    return {
        "samples": len(tokens),
        "tokens": int(tokens.sum()),
        "packing": dict(packing),
        "prints": {"tokens": _print([tokens]), "costs": _print([cost]), "mix": _print(mix), **together},
    }


def numbers_before(state: Mapping[str, Any]) -> int:
    """A global sample number above all that were given up to a saved place."""
    if "numbers" in state:
        return state["numbers"]
    packing = state["packing"]  # of a version that did not note it: a window holds no more samples than tokens
    drawn = sum(drawn for drawn, _ in state["streams"])
    return drawn + packing["data.tokens_per_pack"] * packing["data.packs_per_step"] * packing["lookahead"]


def others(state: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a saved state is of other data, costs, mix or packs than `now`, which `identify` gave."""
    try:
        refuse_other(state, now)
    except UserError:
        return True
    return False


def check_whole(state: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises UserError where a saved state lacks what a place is made of."""
    if not now.keys() | {"window", "streams", "carried", "place"} <= state.keys():
        raise UserError("the saved position in the data is of another version of latentvid: start a new run.dir")


def refuse_other(state: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises UserError where a saved state is of other data, costs, mix or packs than `now`, which `identify` gave."""
    check_whole(state, now)
    fix = "resume with the same data, or start a new run.dir"
    if state["samples"] < now["samples"]:
        fix = f"{fix}; data.may_grow=true takes in clips that were appended"
    if state["samples"] != now["samples"]:
        raise UserError(
            f"this run began with {counted(state['samples'], 'sample')}, the data set now has {now['samples']}: {fix}"
        )
    changed = [n for n in (*now["prints"], "reads") if now["prints"].get(n) != state["prints"].get(n)]
    if "tokens" in changed:
        raise UserError(
            f"the sizes or the order of the {now['samples']} samples have changed since this run began "
            f"({state['tokens']} tokens then, {now['tokens']} now): {fix}"
        )
    if changed and "reads" not in changed:  # else what changed them comes first
        what = {"costs": "the cost of samples (from the model's width)", "mix": "the sources or their weights"}
        raise UserError(f"{what[changed[0]]} changed since this run began: change it back, or start a new run.dir")
    for key, value in now["packing"].items():
        if state["packing"].get(key) != value:
            raise UserError(
                f"{key} was {state['packing'].get(key)} when this run began, is {value}: "
                "change it back, or start a new run.dir"
            )
    if changed:
        raise UserError(
            "which windows are read together changed since this run began: set data.frames_per_read back "
            "(null where the run had none), and data.tokens_per_pack, which bounds it, or start a new run.dir"
        )


def _print(arrays: Sequence[np.ndarray]) -> str:
    """Of their values: whole numbers count as int64, whatever they are kept in."""
    digest = blake2b(digest_size=8)
    for array in arrays:
        kind = np.int64 if array.dtype.kind in "iu" else array.dtype
        for begin in range(0, len(array), CHUNK):
            digest.update(array[begin : begin + CHUNK].astype(kind, order="C"))
    return digest.hexdigest()
