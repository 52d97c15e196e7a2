"""Trains the diffusion transformer.

    accelerate launch train/train_dit.py CONFIG.yaml [--section.key=value ...]

--dry-run says what the run would be, and stops. Started again with the same configuration it goes on from the newest
checkpoint in run.dir; SIGTERM and SIGUSR1 save and end it with status 75. It leaves RUN/metrics.jsonl,
RUN/checkpoints/, RUN/samples/ and RUN/pipeline/, which inference/t2v.py takes.
"""

from latentvid.errors import user_errors
from latentvid.training.config import DitConfig
from latentvid.training.dit_task import DitTask
from latentvid.training.load import parse_cli
from latentvid.training.trainer import train

if __name__ == "__main__":
    with user_errors():
        train(parse_cli(DitConfig, doc=__doc__), DitTask)
