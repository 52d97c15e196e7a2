"""Trains the diffusion transformer.

    python train/train_dit.py CONFIG.yaml [--section.key value ...]

--dry-run says what the run would be, and stops. Started again with the same configuration it goes on from the newest
checkpoint in run.dir; SIGTERM, SIGUSR1 and Ctrl-C save and end it with status 75. It leaves RUN/metrics.jsonl,
RUN/checkpoints/, RUN/samples/ and RUN/pipeline/, which inference/t2v.py takes.
"""

from latentvid.config.parsing import parse_cli
from latentvid.config.schema import DitConfig
from latentvid.errors import user_errors


def main() -> None:
    config = parse_cli(DitConfig, doc=__doc__)
    # after the command line is read: --help and wrong options are answered at once
    from latentvid.training.stages.dit.choice import dit_task
    from latentvid.training.trainer import train

    train(config, dit_task)


if __name__ == "__main__":
    with user_errors():
        main()
