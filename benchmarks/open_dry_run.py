"""The table of docs/open_models.md: what tuning each published transformer takes, before its weights are fetched.

    python benchmarks/open_dry_run.py [--only NAME ...] [--json FILE] [--markdown FILE]    # some minutes on one core

Nothing is trained and nothing is fetched. Sizes are those of latentvid/models/open/published.py; parameters, FLOPs and
bytes are counted on networks without storage, by the rules of latentvid/training/dryrun. A step is one clip a GPU, of
the size that the model is known for, in bf16 with recomputing; LoRA is of rank 16 in the layers of attention. What is
trained, its moments and its average are fp32; the frozen base of LoRA is bf16.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentvid.models.flops import TRAINING
from latentvid.models.open import OpenBackbone, packed
from latentvid.models.open.flops import DEPTHS, flops_of
from latentvid.models.open.published import PUBLISHED, PublishedSize
from latentvid.models.quantised import bytes_saved
from latentvid.packing import Grid
from latentvid.training.dryrun.estimate import backbone_pass_bytes, peak_bytes
from latentvid.training.dryrun.memory import shared_state

CARDS = {"24 GB": 24e9, "48 GB": 48e9, "80 GB": 80e9, "141 GB": 141e9}
USABLE = 0.92  # of a card's memory: the rest is the CUDA context's, the libraries' and the allocator's gaps
DEVICES, RANK = 8, 16
TARGETS = (".to_q", ".to_k", ".to_v", ".to_out.0")
STRATEGIES = ("single", "DDP", "FSDP2", "ZeRO-3")


class WithLora(nn.Module):
    """A layer with LoRA beside it, as peft's computes it; peft's own cannot be made without storage."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.a = nn.Linear(layer.in_features, RANK, bias=False)
        self.b = nn.Linear(RANK, layer.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.b(self.a(x.to(self.a.weight.dtype)))


def backbone(published: PublishedSize, lora: bool, depths: Mapping[str, int]) -> OpenBackbone:
    """With so many blocks, as it is trained."""
    raw = published.make(**depths)
    if not lora:
        return packed(raw)
    for module in raw.modules():
        for key, p in module._parameters.items():
            if p is not None:  # `to` cannot change tensors without storage
                module._parameters[key] = nn.Parameter(p.detach().to(torch.bfloat16), requires_grad=False)
    for name, layer in adapted(raw):
        raw.set_submodule(name, WithLora(layer))
    return packed(raw)


def adapted(raw: nn.Module) -> list[tuple[str, nn.Linear]]:
    """The layers that `TARGETS` name."""
    return [(n, m) for n, m in raw.named_modules() if isinstance(m, nn.Linear) and f".{n}".endswith(TARGETS)]


def lora_size(raw: nn.Module) -> int:
    return sum(RANK * (layer.in_features + layer.out_features) for _, layer in adapted(raw))


def memory(published: PublishedSize, lora: bool, whole: OpenBackbone, grid: Grid) -> dict[str, float]:
    """Bytes that a device holds at most, by strategy: one clip each."""
    depths = {key: whole.config[key] for key in DEPTHS if whole.config.get(key)}
    each = 2 if lora else 4  # bytes of a frozen weight, and of a trained one
    every = sum(p.numel() for p in whole.parameters())
    trained = 4 * (lora_size(whole.raw) if lora else every)
    weights = each * every + trained * lora
    block = each * max(sum(p.numel() for p in b.parameters()) for b in whole.blocks)
    passing = backbone_pass_bytes(
        lambda few: backbone(published, lora, few), depths, [grid], [published.text], checkpointing=True
    )
    found: dict[str, float] = {"trained": trained / 4}
    for world in (1, DEVICES):
        for strategy, n, state in shared_state(weights, trained, 2 * trained, block, world):
            if n == world and strategy in STRATEGIES:
                found[strategy] = peak_bytes(strategy, state, passing, trained, block, packs=1, weights=weights)
    return found


def figures(name: str) -> dict[str, Any]:
    published = PUBLISHED[name]
    with torch.device("meta"):
        model = packed(published.make())
    grid = published.grid(model.patch)
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    return {
        "parameters": sum(p.numel() for p in model.raw.parameters()),
        "grid": grid,
        "flops": TRAINING * flops_of(type(model.raw), config, grid, published.text),
        "full": memory(published, False, model, grid),
        "lora": memory(published, True, model, grid),
        "less": less(model),
    }


def less(model: OpenBackbone) -> dict[str, float]:
    """Bytes that a bf16 base is smaller by, its blocks' linear layers held as `adapter.base` says."""
    frozen = model.to(torch.bfloat16).requires_grad_(False)
    return {kind: bytes_saved(frozen.blocks, kind) for kind in ("int8", "nf4")}


def table(rows: Mapping[str, dict[str, Any]]) -> str:
    """The Markdown table."""
    head = ["model", "parameters", "clip", "tokens", "FLOPs a step", "full, FSDP2 on 8", "full, ZeRO-3 on 8"]
    head += ["LoRA, of them trained", "LoRA, one GPU", "LoRA, FSDP2 on 8", "less with int8, nf4"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, row in rows.items():
        p, (f, h, w) = PUBLISHED[name], row["grid"]
        cells = [name, f"{row['parameters'] / 1e9:.2f} B", f"{p.frames} x {p.height} x {p.width}", f"{f * h * w:,}"]
        cells += [f"{row['flops'] / 1e15:.3g} P", fits(row["full"]["FSDP2"]), fits(row["full"]["ZeRO-3"])]
        cells += [f"{row['lora']['trained'] / 1e6:.3g} M", fits(row["lora"]["single"]), fits(row["lora"]["FSDP2"])]
        cells += [", ".join(f"{held / 1e9:.1f}" for held in row["less"].values()) + " GB"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def fits(needed: float) -> str:
    """Gigabytes, and the smallest card that has them."""
    card = next((name for name, has in CARDS.items() if needed <= USABLE * has), None)
    return f"{needed / 1e9:,.0f} GB ({card or 'more than one has'})"


def one_of(published: PublishedSize) -> PublishedSize:
    """The size of one of its networks: two experts cost what one does, as one is trained at a time."""
    return replace(published, experts=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PUBLISHED, default=list(PUBLISHED))
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    rows = {}
    for name in arguments.only:
        alike = (other for other in rows if one_of(PUBLISHED[other]) == one_of(PUBLISHED[name]))
        rows[name] = rows.get(next(alike, "")) or figures(name)
        print(name, json.dumps(rows[name]), flush=True)
    text = table(rows)
    print(text)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if arguments.markdown:
        arguments.markdown.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
