"""Memory that an evaluation takes by the number of clips, and whether two processes give what one gives.

    python benchmarks/evaluation_memory.py --weights DIR --work FOLDER [--counts 100 1000] --out FILE.json

Writes digit clips with captions, noisier copies of them as the real ones, and runs the command on each number of clips
alone, and on the smallest number with two processes, every time with an empty cache. `MB` is the highest resident
memory of any of a run's processes.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from latentvid.data.video.writing import write_video
from latentvid.demo.digits import prompts, render

ROOT = Path(__file__).parents[1]
METRICS = ("fid", "kid", "psnr", "ssim", "flicker", "warping_error", "dynamic_degree", "both")
FRAMES, SIDE, NOISE = 17, 64, 12.0


def write_clips(folder: Path, count: int) -> None:
    """made/ and real/ with `count` clips each, and the captions of made/."""
    (folder / "made").mkdir(parents=True, exist_ok=True)
    lines = []
    for i, (label, text) in enumerate(tqdm(prompts(count, heldout=False, seed=0), desc="writing clips")):
        clip = render(label, FRAMES, (SIDE, SIDE), np.random.default_rng((0, i)), heldout=False)
        noise = NOISE * torch.randn(clip.shape, generator=torch.Generator().manual_seed(i))
        write_video(folder / "made" / f"{i:05d}.mp4", clip, 8)
        write_video(folder / "real" / f"{i:05d}.mp4", (clip + noise).clamp(0, 255).byte(), 8)
        lines.append(json.dumps({"file": f"{i:05d}.mp4", "prompt": text}) + "\n")
    (folder / "made" / "results.jsonl").write_text("".join(lines))


def evaluate(folder: Path, count: int, processes: int, weights: Path) -> dict:
    """One run of the command: memory, time, and what scores.json holds."""
    out = folder / f"scores-{count}-{processes}"
    shutil.rmtree(out, ignore_errors=True)
    arguments = [folder / "made", "--real", folder / "real", "--max-clips", count, "--max-real", count, "--out", out]
    arguments += ["--frames", FRAMES, "--weights", weights, "--pictures", 1, "--resamples", 50, "--metrics", *METRICS]
    launcher = ["-m", "accelerate.commands.launch", "--config_file", ROOT / "configs/accelerate/ddp.yaml"]
    launcher += ["--num_processes", processes, "--main_process_port", 0] if processes > 1 else []
    words = [sys.executable, *(launcher if processes > 1 else []), "-m", "latentvid.evaluation", *arguments]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    started = time.time()
    process = subprocess.Popen([str(word) for word in words], cwd=ROOT, env=settings)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the command ended with status {os.waitstatus_to_exitcode(status)}")
    found = json.loads((out / "scores.json").read_text())
    facts = {"clips": count, "processes": processes, "MB": usage.ru_maxrss / 1e3, "seconds": time.time() - started}
    return facts | {"skipped": len(found["skipped"]), "scores": found["scores"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="folder of inception/")
    parser.add_argument("--work", type=Path, required=True, help="folder for the clips and scores")
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    args = parser.parse_args()
    write_clips(args.work, max(args.counts))
    rows = [evaluate(args.work, count, 1, args.weights) for count in sorted(args.counts)]
    rows.append(evaluate(args.work, min(args.counts), 2, args.weights))
    result = {"frames": FRAMES, "size": [SIDE, SIDE], "equal": rows[0]["scores"] == rows[-1]["scores"], "rows": rows}
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print(f"| {row['clips']} | {row['processes']} | {row['MB']:.0f} | {row['seconds']:.0f} |")
    print("two processes give what one gives" if result["equal"] else "two processes give SOMETHING ELSE than one")


if __name__ == "__main__":
    main()
