"""train/train_dit.py where Newton-Schulz is in fp32, as on a machine whose measurement says that this is faster.

train_in_fp32.py CONFIG.yaml
"""

import runpy
import sys
from pathlib import Path

from latentvid import precision
from latentvid.training import compute

compute.speed = lambda device: precision.Speed(products=0.5, convolutions=0.5)

if __name__ == "__main__":
    program = Path(__file__).parents[2] / "train/train_dit.py"
    sys.argv[0] = str(program)
    runpy.run_path(str(program), run_name="__main__")
