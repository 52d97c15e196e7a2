"""Preference tuning of the demo's transformer on pairs of its own clips, which its judge has labelled.

    python benchmarks/preference.py --demo runs/demo --out runs/preference

makes --clips clips of each of --prompts prompts by the demo's pipeline, pairs the best and the worst of each by the
judge (`both`, then `certainty`, its probability of the digit), tunes a LoRA on --pairs of them by
configs/dit/demo_dpo.yaml, and compares the tuned model with the demo's on --new prompts that no pair has, with equal
noise: OUT/preference.json has the win rate by the same scores (ties a half, and without them) with Wilson's intervals,
and the judge's shares of both. What is there is not made again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from latentvid.demo.digits import prompts
from latentvid.evaluation.preference.counting import wilson
from latentvid.limits import number
from latentvid.preference.sample import FOLDERS
from latentvid.training.monitor.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[1]
JUDGE = "latentvid.demo.prompt_following:"
SCORES = [word for name in ("both", "certainty") for word in ("--score", JUDGE + name)]
SHARES = ("both", "strict", "certainty", "colour", "verb")


def run(*words: object) -> str:
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def write_prompts(out: Path, count: int, new: int, seed: int) -> None:
    """tuning.jsonl and new.jsonl; no text is in both."""
    texts = list(dict.fromkeys(text for _, text in prompts(4 * (count + new), heldout=False, seed=100 + seed)))
    for name, chosen in (("tuning", texts[:count]), ("new", texts[count : count + new])):
        rows = [json.dumps({"prompt": text}) + "\n" for text in chosen]
        (out / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")


def label(folders: Sequence[Path], table: Path) -> tuple[int, int]:
    """Pairs of which the first folder's clip is the better one, and pairs that are no ties."""
    run("-m", "latentvid.preference", "label", *folders, *SCORES, "--out", table)
    rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    return sum((table.parent / row["path"]).parent.samefile(folders[0]) for row in rows), len(rows)


def shares(clips: Path, out: Path) -> dict[str, float]:
    run("-m", "latentvid.evaluation", clips, "--metrics", *(JUDGE + name for name in SHARES), "--out", out)
    found = json.loads((out / "scores.json").read_text(encoding="utf-8"))["scores"]
    return {name: found[name]["value"] for name in SHARES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="a finished demo")
    parser.add_argument("--out", type=Path, default=Path("runs/preference"))
    parser.add_argument("--prompts", type=number("prompts"), default=500, help="that pairs are of")
    parser.add_argument("--clips", type=number("pairs"), default=4, help="of each, of which the best and worst pair")
    parser.add_argument("--pairs", type=number("pairs"), default=500, help="that are trained on, at most")
    parser.add_argument("--new", type=number("heldout"), default=200, help="prompts to compare on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("options", nargs="*", help="of training, such as preference.beta=500")
    arguments = parser.parse_args()
    demo, out, seed = arguments.demo.resolve(), arguments.out.resolve(), arguments.seed
    out.mkdir(parents=True, exist_ok=True)
    write_prompts(out, arguments.prompts, arguments.new, seed)
    model = ("--model", demo / "pipeline", "--mixed-precision", "no")
    run("-m", "latentvid.preference", "sample", *model, "--prompts", out / "tuning.jsonl", "--seed", seed * 10**6,
        "--clips", arguments.clips, "--output", out / "pairs")  # fmt: skip
    made = [out / "pairs" / name for name in FOLDERS[: arguments.clips]]
    first, decided = label(made, out / "pairs/all.jsonl")
    rows = (out / "pairs/all.jsonl").read_text(encoding="utf-8").splitlines()[: arguments.pairs]
    (out / "pairs/pairs.jsonl").write_text("".join(row + "\n" for row in rows), encoding="utf-8")
    run(
        *("train/train_dit.py", "configs/dit/demo_dpo.yaml", f"--run.dir={out / 'run'}", f"--run.seed={seed}"),
        *(f"--init={demo / 'pipeline'}", f"--vae={demo / 'vae_run/vae'}", f"--text_encoder={demo / 't5'}"),
        *(f"--data.manifest={out / 'pairs/pairs.jsonl'}", "--samples.every=0", "--log.trackers=[]"),
        *(f"--{option}" for option in arguments.options),
    )
    new = ("--prompts", out / "new.jsonl", "--seed", seed * 10**6 + 5 * 10**5)
    run("inference/t2v.py", *model, *new, "--output", out / "base")
    run("inference/t2v.py", *model, *new, "--lora", out / "run/lora", "--output", out / "tuned")
    wins, decisions = label([out / "tuned", out / "base"], out / "compared.jsonl")
    rate, alone = (wins + (arguments.new - decisions) / 2) / arguments.new, wins / decisions
    log = read_metrics(out / "run")
    found = {
        "pairs": {
            "clips": arguments.clips,
            "made": arguments.prompts,
            "decided": decided,
            "first": first,
            "trained": len(rows),
        },
        "training": {name: [log[0][name], log[-1][name]] for name in ("loss", "margin", "accuracy", "error_preferred")},
        "win rate": {"value": rate, "wilson": wilson(rate, arguments.new), "prompts": arguments.new},
        "win rate without ties": {"value": alone, "wilson": wilson(alone, decisions), "prompts": decisions},
        "base": shares(out / "base", out / "base_scores"),
        "tuned": shares(out / "tuned", out / "tuned_scores"),
    }
    (out / "preference.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
