"""Made the golden files beside it, once: `python tests/golden/make.py NAME ...`, with no names all of them.

They pin what the system computes: the function of the models, the noise path and its solvers, and what is drawn for a
seed. Saved models, seeds and checkpoints of users mean what these files say. So do not run it again because a test
fails: that a test fails says that saved models would now give other results. It is run again only where a change of
results is wanted, and then the commit says which results change and why.

Everything is fp32 on a CPU; values are of order 1, and the tests allow for another processor's rounding.
"""

import json
import sys

from golden_cases import CASES, FOLDER, draws
from safetensors.torch import save_file


def main(names: list[str]) -> None:
    for name in names or [*CASES, "draws"]:
        if name == "draws":
            lines = [f'"{key}": {json.dumps(value)}' for key, value in draws().items()]
            (FOLDER / "draws.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
            continue
        make_inputs, compute = CASES[name]
        given = make_inputs()
        tensors = {f"given.{k}": v for k, v in given.items()} | {f"found.{k}": v for k, v in compute(given).items()}
        save_file({k: v.contiguous() for k, v in tensors.items()}, FOLDER / f"{name}.safetensors")


if __name__ == "__main__":
    main(sys.argv[1:])
