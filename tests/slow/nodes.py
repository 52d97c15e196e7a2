"""Two nodes on one machine: network namespaces joined by a cable, as root. Each has its own address and loopback.

Both see one file system, as nodes of a cluster do. A node's processes are those of its namespace.
"""

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from launching import command, driver, environment, kill, spawn

HEAD, PORT = "10.77.0.1", 29600
RESTARTS = ("--max_restarts", "3", "--monitor_interval", "1")


@dataclass(frozen=True)
class Node:
    namespace: str
    address: str
    rank: int

    def pids(self) -> list[int]:
        """Every process of the node."""
        return [int(word) for word in _ip("netns", "pids", self.namespace).split()]

    def kill(self) -> None:
        """The power goes: all processes at once."""
        while pids := self.pids():
            kill(pids)


def why_not() -> str | None:
    """What keeps this machine from making nodes, with the way to mend it; None where nothing does."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "needs the command `ip`: apt-get install iproute2"
    probe = f"latentvid-{uuid.uuid4().hex[:6]}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode:
        return f"network namespaces cannot be made here: {made.stderr.strip()}"
    _ip("netns", "delete", probe)
    return None


@contextmanager
def two_nodes() -> Iterator[tuple[Node, Node]]:
    """Namespaces with 10.77.0.1 and 10.77.0.2, removed at the end with all that runs in them."""
    tag = uuid.uuid4().hex[:6]
    nodes = tuple(Node(f"latentvid-{tag}-{i}", f"10.77.0.{i + 1}", i) for i in range(2))
    ends = [f"lv{tag}{i}" for i in range(2)]
    try:
        for node in nodes:
            _ip("netns", "add", node.namespace)
        _ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for node, end in zip(nodes, ends, strict=True):
            _ip("link", "set", end, "netns", node.namespace)
            inside = ("-n", node.namespace)
            _ip(*inside, "link", "set", end, "name", "eth0")
            _ip(*inside, "address", "add", f"{node.address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip(*inside, "link", "set", device, "up")
        yield nodes
    finally:
        for node in nodes:
            if Path("/run/netns", node.namespace).exists():
                node.kill()
                _ip("netns", "delete", node.namespace)  # takes its end of the cable with it, and so the cable


def start_on(
    node: Node, recipe: str, *programs: Sequence[object], backend: str = "c10d", log: Path
) -> subprocess.Popen:
    """The launcher of this node, for two nodes of one process each, with restarts."""
    rendezvous = ["--main_process_ip", HEAD, "--main_process_port", str(PORT), "--rdzv_backend", backend]
    if backend == "c10d":  # by name and by default both nodes would be 127.0.0.1
        rendezvous += ["--rdzv_conf", f"is_host={int(node.rank == 0)}"]
    if recipe.startswith("zero"):
        rendezvous += ["--deepspeed_multinode_launcher", "standard"]
    options = ["--num_machines", "2", "--machine_rank", str(node.rank), *rendezvous, *RESTARTS]
    return _spawn_on(node, recipe, command(recipe, 2, *programs, options=options), log)


def start_elastic_on(node: Node, *programs: Sequence[object], log: Path) -> subprocess.Popen:
    """torchrun for one or two nodes of one DDP process each: a run that goes on with the node that is left."""
    words = ["--nnodes", "1:2", "--nproc_per_node", "1", "--rdzv_backend", "c10d", "--rdzv_endpoint", f"{HEAD}:{PORT}"]
    words += ["--rdzv_conf", f"is_host={int(node.rank == 0)}", *RESTARTS, *driver("ddp", *programs)]
    return _spawn_on(node, "ddp", [sys.executable, "-m", "torch.distributed.run", *words], log)


def _spawn_on(node: Node, recipe: str, words: Sequence[str], log: Path) -> subprocess.Popen:
    settings = environment(
        recipe,
        GLOO_SOCKET_IFNAME="eth0",
        PET_LOCAL_ADDR=node.address,
        TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1",  # else the first rank's launcher holds it, and a lost node may be that
    )
    return spawn(["ip", "netns", "exec", node.namespace, *words], settings, log)


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
    return done.stdout
