"""What this machine can do, and which shipped configurations it can train: what `latentvid doctor` says.

Axes of shapes: F frames, H height, W width in pixels; C channels, f h w of latents.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import psutil
import torch
from torch import nn

from . import precision
from .attention import BACKENDS, packed_attention, resolve_backend
from .config.curriculum import curriculum
from .config.parsing import load_config
from .config.schema import DitConfig, VaeConfig
from .config.shipped import FOLDER
from .errors import UserError, brief
from .models.flops import TRAINING, backbone_flops, peak_flops, vae_flops
from .models.interchange import build_vae
from .models.transformer import VideoDiT
from .packing import Packed
from .training.dryrun.estimate import dit_pass_bytes, peak_bytes
from .training.dryrun.memory import PassBytes, pass_bytes, shared_state
from .training.dryrun.words import duration, in_bytes, indented, si
from .training.machine import usable_cores
from .training.monitor.about import processor
from .training.stages.vae.losses import VaeObjective
from .training.stages.vae.task import ClipGroup, ClipPack, VaeTask
from .versions import installed
from .world import usable_device

LATENTS, TEXT_WIDTH, WORDS = 16, 768, 32  # what a DiT's configuration does not say: of a usual VAE and text encoder
STRIDES = 4, 8  # of that VAE, in time and space
REACHED = 0.4  # share of the peak that a step's arithmetic is assumed to reach
OWN = (
    *("dit/demo", "vae/demo", "vae/laptop", "dit/laptop", "vae/small", "dit/base", "vae/4x8x8", "vae/8x32x32"),
    "dit/curriculum",
)
OPTIONAL = ("deepspeed", "flash_attn", "bitsandbytes", "wandb", "cv2", "torch_fidelity")
ENCODERS = {"mp4": "libx264", "webm": "libvpx-vp9", "gif": "gif", "png": "png"}
LEAST_FREE = 10 * 2**30  # bytes of disk, below which it is said


@dataclass(frozen=True)
class Need:
    """What one process needs to train a configuration. bytes: of a step, at most; flops: of the whole run."""

    parameters: float
    bytes: float
    flops: float


def machine(device: torch.device) -> Iterator[tuple[str, str]]:
    """(what, in words) of each thing that matters, some of it measured now, in a second or so."""
    known = installed(("latentvid", "torch", "diffusers", "transformers", "accelerate", "peft"))
    yield "versions", ", ".join(f"{name} {number}" for name, number in known.items())
    cores = usable_cores()
    yield "processor", f"{processor()}, {cores} cores to use, {torch.backends.cpu.get_cpu_capability()}"
    yield "GPU", gpu()
    yield (
        "computes",
        f"{_rates(device)}; bf16 is {precision.speed(device)}: `auto` is "
        + ("bf16" if precision.choose("auto", device) == "bf16" else "fp32"),
    )
    yield "attention", attention(device)
    yield "memory", memory(device)
    yield "disk", disk(Path.cwd())
    yield "FFmpeg", ffmpeg()
    yield "launcher", launcher(device, cores)
    there = {name: importlib.util.find_spec(name) is not None for name in OPTIONAL}
    yield "optional", ", ".join(f"{name}: {'there' if found else 'not installed'}" for name, found in there.items())


def gpu() -> str:
    """What CUDA sees; where there is none, why."""
    if not torch.cuda.is_available():
        built = torch.version.cuda
        return "none" if built is None else f"none that torch can use (built for CUDA {built}: see `nvidia-smi`)"
    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    named = ", ".join(f"{card.name} with {in_bytes(card.total_memory)}" for card in cards)
    return f"{named}; CUDA {torch.version.cuda}"


def _rates(device: torch.device) -> str:
    """FLOP/s of large matrix products, measured or by the datasheet."""
    found = []
    for computed in ("bf16", "no"):
        rate, where = peak_flops(device, computed)
        found.append(f"{si(rate)}FLOP/s in {'fp32' if computed == 'no' else computed} ({where.partition(',')[0]})")
    return ", ".join(found)


def attention(device: torch.device) -> str:
    """Which backends work here, each tried on a small pack."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    layout = Packed.of_lengths([5, 3]).to(device)
    q = torch.ones(8, 2, 64, device=device, dtype=dtype)
    said = []
    for name in BACKENDS:
        try:
            packed_attention(q, q, q, layout, layout, resolve_backend(name, device, dtype))
            said.append(f"{name}: works")
        except (UserError, RuntimeError, ImportError) as error:
            elsewhere = device.type != "cuda" and name in ("torch", "flash")
            said.append(f"{name}: needs CUDA" if elsewhere else f"{name}: not here ({brief(error, 60)})")
    return f"auto is {resolve_backend('auto', device, dtype)}; {', '.join(said)}"


def memory(device: torch.device) -> str:
    held = psutil.virtual_memory()
    text = f"{in_bytes(held.available)} of {in_bytes(held.total)} free"
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        text += f"; on the GPU {in_bytes(free)} of {in_bytes(total)}"
    if os.path.isdir("/dev/shm"):
        text += f"; /dev/shm (for loader processes) {in_bytes(shutil.disk_usage('/dev/shm').total)}"
    return text


def disk(folder: Path) -> str:
    free = shutil.disk_usage(folder).free
    note = ": little for checkpoints and caches of latents" if free < LEAST_FREE else ""
    return f"{in_bytes(free)} free here{note}"


def ffmpeg() -> str:
    """The libraries that PyAV brings, and what they can write."""
    version = ".".join(map(str, av.library_versions["libavcodec"]))
    missing = [ending for ending, name in ENCODERS.items() if name not in av.codecs_available]
    can = ", ".join(ending for ending in ENCODERS if ending not in missing)
    return f"PyAV {av.__version__}, libavcodec {version}: writes {can}" + (
        f"; cannot write {', '.join(missing)}" if missing else ""
    )


def launcher(device: torch.device, cores: int) -> str:
    """How a training starts here."""
    if device.type == "cuda":
        n = torch.cuda.device_count()
        one = "latentvid train-dit CONFIG"
        return one if n == 1 else f"accelerate launch --num_processes {n} -m {one}"
    n = min(cores, 2)
    line = f"accelerate launch --multi_gpu --num_processes {n} -m latentvid train-dit CONFIG"
    return "latentvid train-dit CONFIG" if n == 1 else f"OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=true {line}"


def needs(name: str) -> Need:
    """Of a shipped configuration, for one process in bf16, as `--dry-run` counts it, on clips of its largest size."""
    kind, file = name.partition("/")[0], FOLDER / f"{name}.yaml"
    if kind == "vae":
        return _of_vae(load_config(VaeConfig, file, ["data.manifest=none"]))
    return _of_dit(load_config(DitConfig, file))


def _of_vae(config: VaeConfig) -> Need:
    build = partial(build_vae, config.model, "model")
    model = VaeTask.new_model(SimpleNamespace(config=config))
    vae, data = build(), config.data
    side = data.crop or int((data.max_area or 128**2) ** 0.5) // vae.spatial_stride * vae.spatial_stride
    shape = (data.max_frames - (data.max_frames - 1) % vae.temporal_stride, side, side)
    grid = vae.latent_grid(*shape)
    clips = max(1, round(data.tokens_per_pack / (grid[0] * grid[1] * grid[2])))
    pack = ClipPack(
        [
            ClipGroup(
                torch.zeros(clips, *shape, 3, dtype=torch.uint8),
                torch.zeros(clips, vae.latent_channels, *grid),
                tuple(range(clips)),
            )
        ],
        [grid[0] * grid[1] * grid[2]] * clips,
    )
    task = SimpleNamespace(model=model, blocks=(), config=config, loss=VaeObjective(config, None))
    passing = pass_bytes(task, pack, checkpointing=False, gpu=True)
    flops = TRAINING * sum(vae_flops(vae, shape)[1:]) * clips * data.packs_per_step * config.train.steps
    return _need(model, passing, data.packs_per_step, flops)


def _of_dit(config: DitConfig) -> Need:
    """Of the largest stage, in clips of its `max_frames` and `max_area`."""
    found = [_of_stage(stage.config, stage.end - stage.begin) for stage in curriculum(config)]
    return Need(found[0].parameters, max(need.bytes for need in found), sum(need.flops for need in found))


def _of_stage(config: DitConfig, steps: int) -> Need:
    arguments = {key: value for key, value in config.model.items() if key != "kind"}
    arguments = {"latent_channels": LATENTS, "text_width": TEXT_WIDTH, **arguments}
    with torch.device("meta"):
        model = VideoDiT(**arguments)
    patch, data = model.config["patch"], config.data
    side = max(patch, int((data.max_area or 128**2) ** 0.5) // STRIDES[1] // patch)
    grid = (1 + ((data.max_frames or 17) - 1) // STRIDES[0], side, side)
    clips = max(1, round(data.tokens_per_pack / (grid[0] * grid[1] * grid[2])))
    words = [WORDS] * clips
    passing = dit_pass_bytes(dict(model.config), [grid] * clips, words, config.train.gradient_checkpointing)
    flops = backbone_flops(model, [grid] * clips, words)
    return _need(model, passing, data.packs_per_step, TRAINING * flops * data.packs_per_step * steps)


def _need(model: nn.Module, passing: PassBytes, packs: int, flops: float) -> Need:
    trained = sum(4 * p.numel() for p in model.parameters() if p.requires_grad)
    every = sum(p.numel() * p.element_size() for p in model.parameters())
    ((_, _, state), *_) = shared_state(every, trained, 2 * trained, 0, 1)
    most = peak_bytes("single", state, passing, trained, 0, packs, weights=every)
    return Need(sum(p.numel() for p in model.parameters()), most, flops)


def table(device: torch.device, tell: Callable[[str], None]) -> None:
    """Tells of each configuration for clips of one's own, a line as soon as it is counted."""
    computed = precision.choose("auto", device)
    rate, _ = peak_flops(device, computed)
    cuda = device.type == "cuda"
    room = torch.cuda.get_device_properties(device).total_memory if cuda else psutil.virtual_memory().available
    wide = 1 if computed == "bf16" else 2  # activations of fp32 take twice those of bf16, which are what is counted
    head = ("configuration", "parameters", "memory a step", "the run takes", "here")
    tell(indented([head]).replace(head[0], f"{head[0]:<16}"))
    for name in OWN:
        need = needs(name)
        seconds, fits = need.flops / (rate * REACHED), need.bytes * wide < room
        verdict = (
            "fits" if fits else "too large for one device: fewer data.tokens_per_pack, or several (docs/scaling.md)"
        )
        row = (f"{name:<16}", si(need.parameters), in_bytes(need.bytes * wide), duration(seconds), verdict)
        tell(f"  {'  '.join(row)}")


def report(tell: Callable[[str], None], device: str | None = None, configurations: bool = True) -> None:
    """Tells all, line by line."""
    found: torch.device = usable_device(device)
    rows: list[tuple[str, Any]] = []
    for row in machine(found):
        rows.append(row)
        tell(f"{row[0]:<10} {row[1]}")
    if configurations:
        tell("")
        tell(
            f"shipped configurations on this {found.type}, one process, at {REACHED:.0%} of its rate; what a run on "
            "your clips takes says `--dry-run`:"
        )
        table(found, tell)
        tell("  (open/*_lora: give --model.from a folder or a name on the hub, and --dry-run says its memory)")
