"""Runs a function over units of work: on Ray Data, in processes of this machine or of a cluster.

What comes back, and its values, do not depend on the number of processes; only the order in which it comes does.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import StorageError, UserError, message_of
from .run import CRASHED

Unit = Mapping[str, Any]  # what JSON holds
Work = Callable[[Unit], Any]
STORE_BYTES = 256 * 2**20  # of Ray's store of objects on this machine: units are texts of kilobytes
UNITS_A_TASK = 16  # at most; few, so that what a kill loses is little


class Engine:
    """Ray with so many processes, inside `running`. gpus: of each process of a stage that has a network."""

    def __init__(self, ray: Any, workers: int, gpus: float) -> None:
        self._ray, self.workers, self._gpus = ray, workers, gpus

    def map(
        self, make: Callable[[], Work], units: Iterable[tuple[str, Unit]], *, network: bool
    ) -> Iterator[tuple[str, Any]]:
        """(key, what the work made) of each (key, unit), as they are done.

        make: called once in each process, for what does the work; it is pickled. A unit whose process dies is tried
        again alone, three times, and then counts as {"fault": `CRASHED`}. Raises what the work raises.
        """
        left = dict(units)
        yield from self._pass(make, left, network, UNITS_A_TASK, retries=0)
        if left:
            yield from self._pass(make, left, network, 1, retries=2)
        yield from ((key, {"fault": CRASHED}) for key in left)

    def _pass(
        self, make: Callable[[], Work], left: dict[str, Unit], network: bool, together: int, retries: int
    ) -> Iterator[tuple[str, Any]]:
        """What is done leaves `left`."""
        pickled = pickle.dumps(make)
        rows = [{"key": key, "unit": json.dumps(unit)} for key, unit in left.items()]
        blocks = max(min(len(rows), 4 * self.workers), -(-len(rows) // together))
        data = self._ray.data.from_items(rows, override_num_blocks=blocks)
        given = {"fn_args": (pickled,), "num_cpus": 1, "max_retries": retries}
        given["compute"] = self._ray.data.TaskPoolStrategy(size=self.workers)
        if network and self._gpus:
            given["num_gpus"] = self._gpus
        done = data.map(_work, **given)
        for row in done.iter_rows():
            if row["error"]:
                raise _restored(json.loads(row["error"]))
            left.pop(row["key"])
            yield row["key"], json.loads(row["made"])


_MADE: dict[bytes, Work] = {}  # in a process of Ray's, which serves all stages: what does the work of the last one


def _work(row: dict[str, str], pickled: bytes) -> dict[str, str]:
    """A row with what was made of a unit, or the error that ends the curation. One thread: processes are many."""
    made, error = None, ""
    try:
        if pickled not in _MADE:
            torch.set_num_threads(1)
            _MADE.clear()
            _MADE[pickled] = pickle.loads(pickled)()
        made = _MADE[pickled](json.loads(row["unit"]))
    except StorageError as fault:
        error = json.dumps(["storage", fault.path, fault.why, fault.number, fault.fix])
    except Exception as fault:  # a process that dies is all that Ray must see to
        said = message_of(fault)
        error = json.dumps(["bug", traceback.format_exc()] if said is None else ["user", said])
    return {"key": row["key"], "made": json.dumps(made), "error": error}


def _restored(error: list[Any]) -> Exception:
    kind, *parts = error
    return {"storage": StorageError, "user": UserError, "bug": RuntimeError}[kind](*parts)


@contextmanager
def running(workers: int) -> Iterator[Engine]:
    """Ray of `RAY_ADDRESS`, or else of this machine with so many processes, which ends with the block.

    Raises UserError where Ray is not installed, or the cluster does not answer.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError("curation runs on Ray Data: pip install latentvid[curation]") from error
    address = os.environ.get("RAY_ADDRESS")
    local = {} if address else {"num_cpus": workers, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    try:
        ray.init(address=address or "local", logging_level=logging.ERROR, log_to_driver=False, **local)
    except ConnectionError as error:
        raise UserError(f"RAY_ADDRESS={address}: no cluster answers there: correct it, or unset it") from error
    try:
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars, context.max_errored_blocks = False, -1
        gpus = ray.cluster_resources().get("GPU", 0.0)
        yield Engine(ray, workers, min(1.0, gpus / workers))
    finally:
        ray.shutdown()
