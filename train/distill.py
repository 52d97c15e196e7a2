"""Distils a trained pipeline to one that needs fewer passes through the network.

    python train/distill.py CONFIG.yaml [--section.key value ...]

--dry-run says what the run would be, and stops. Started again with the same configuration it goes on from the newest
checkpoint in run.dir; SIGTERM, SIGUSR1 and Ctrl-C save and end it with status 75. It leaves what train/train_dit.py
leaves; RUN/pipeline/ makes clips by inference/t2v.py in the steps that it was distilled to.
"""

from latentvid.config.distillation import DistillConfig
from latentvid.config.parsing import parse_cli
from latentvid.errors import user_errors


def main() -> None:
    config = parse_cli(DistillConfig, doc=__doc__)
    # after the command line is read: --help and wrong options are answered at once
    from latentvid.training.stages.dit.distill.choice import distill_task
    from latentvid.training.trainer import train

    train(config, distill_task)


if __name__ == "__main__":
    with user_errors():
        main()
