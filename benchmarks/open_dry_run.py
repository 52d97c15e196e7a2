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
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model

from latentvid.models.flops import TRAINING, backbone_flops
from latentvid.models.open import OpenBackbone, packed
from latentvid.models.open.flops import DEPTHS
from latentvid.models.open.published import PUBLISHED, PublishedSize
from latentvid.training.dryrun.estimate import backbone_pass_bytes, peak_bytes
from latentvid.training.dryrun.memory import PassBytes, largest, size, state_bytes

CARDS = {"24 GB": 24e9, "48 GB": 48e9, "80 GB": 80e9, "141 GB": 141e9}
USABLE = 0.92  # of a card's memory: the rest is the CUDA context's, the libraries' and the allocator's gaps
DEVICES, RANK = 8, 16
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
STRATEGIES = ("single", "DDP", "FSDP2", "ZeRO-3")


def backbone(published: PublishedSize, lora: bool, depths: Mapping[str, int]) -> OpenBackbone:
    """As it is trained, in whatever mode of tensors this is called."""
    raw = published.make(**depths)
    if not lora:
        return packed(raw)
    raw.to(torch.bfloat16)
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(TARGETS)), raw)
    for name, p in raw.named_parameters():
        p.requires_grad_("lora_" in name)
        if p.requires_grad:
            p.data = p.data.float()
    return packed(raw)


def memory(published: PublishedSize, lora: bool, grid: tuple[int, int, int]) -> dict[str, float]:
    """Bytes that a device holds at most, by strategy: one clip each."""
    with torch.device("meta"):
        whole = backbone(published, lora, {})
    depths = {key: whole.config[key] for key in DEPTHS if whole.config.get(key)}

    def make(few: Mapping[str, int]) -> OpenBackbone:
        return backbone(published, lora, few)

    passing: PassBytes = backbone_pass_bytes(make, depths, [grid], [published.text], checkpointing=True)
    trained = sum(4 * p.numel() for p in whole.parameters() if p.requires_grad)
    block = largest(whole, whole.blocks)
    found: dict[str, float] = {"trained": trained / 4}
    for world in (1, DEVICES):
        for strategy, n, state in state_bytes(whole, whole.blocks, "adamw", world):
            if n == world and strategy in STRATEGIES:
                found[strategy] = peak_bytes(strategy, state, passing, trained, block, packs=1, weights=size(whole))
    return found


def figures(name: str) -> dict[str, Any]:
    published = PUBLISHED[name]
    with torch.device("meta"):
        model = packed(published.make())
    grid = published.grid(model.patch)
    return {
        "parameters": sum(p.numel() for p in model.raw.parameters()),
        "grid": grid,
        "flops": TRAINING * backbone_flops(model, [grid], [published.text]),
        "full": memory(published, False, grid),
        "lora": memory(published, True, grid),
    }


def table(rows: Mapping[str, dict[str, Any]]) -> str:
    """The Markdown table."""
    head = ["model", "parameters", "clip", "tokens", "FLOPs a step", "full, FSDP2 on 8", "full, ZeRO-3 on 8"]
    head += ["LoRA, of them trained", "LoRA, one GPU", "LoRA, FSDP2 on 8"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, row in rows.items():
        p, (f, h, w) = PUBLISHED[name], row["grid"]
        cells = [name, f"{row['parameters'] / 1e9:.2f} B", f"{p.frames} x {p.height} x {p.width}", f"{f * h * w:,}"]
        cells += [f"{row['flops'] / 1e15:.3g} P", fits(row["full"]["FSDP2"]), fits(row["full"]["ZeRO-3"])]
        cells += [f"{row['lora']['trained'] / 1e6:.3g} M", fits(row["lora"]["single"]), fits(row["lora"]["FSDP2"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def fits(needed: float) -> str:
    """Gigabytes, and the smallest card that has them."""
    card = next((name for name, has in CARDS.items() if needed <= USABLE * has), None)
    return f"{needed / 1e9:,.0f} GB ({card or 'more than one has'})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PUBLISHED, default=list(PUBLISHED))
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    rows = {}
    for name in arguments.only:
        rows[name] = figures(name)
        print(name, json.dumps(rows[name]), flush=True)
    text = table(rows)
    print(text)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if arguments.markdown:
        arguments.markdown.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
