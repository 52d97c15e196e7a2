"""Trains the causal video autoencoder on images and clips together.

    latentvid train-vae CONFIG [--section.key value ...]

--dry-run says what the run would be, and stops. Started again with the same configuration it goes on from the newest
checkpoint in run.dir; SIGTERM, SIGUSR1 and Ctrl-C save and end it with status 75. It leaves RUN/metrics.jsonl,
RUN/checkpoints/ and RUN/vae/, the model in diffusers' format with its latents' statistics.
"""

from ..config.parsing import parse_cli
from ..config.schema import VaeConfig
from ..errors import user_errors


@user_errors()
def main() -> None:
    config = parse_cli(VaeConfig, doc=__doc__, kinds=("vae",))
    # after the command line is read: --help and wrong options are answered at once
    from ..training.stages.vae.task import VaeTask
    from ..training.trainer import train

    train(config, VaeTask)
