"""Distils a trained pipeline to one that needs fewer passes through the network.

    latentvid distill CONFIG [--section.key value ...]

--dry-run says what the run would be, and stops. Started again with the same configuration it goes on from the newest
checkpoint in run.dir; SIGTERM, SIGUSR1 and Ctrl-C save and end it with status 75. It leaves what `latentvid train-dit`
leaves; RUN/pipeline/ makes clips by `latentvid t2v` in the steps that it was distilled to.
"""

from ..config.distillation import DistillConfig
from ..config.parsing import parse_cli
from ..errors import user_errors


@user_errors()
def main() -> None:
    config = parse_cli(DistillConfig, doc=__doc__, kinds=("dit",))
    # after the command line is read: --help and wrong options are answered at once
    from ..training.stages.dit.distill.choice import distill_task
    from ..training.trainer import train

    train(config, distill_task)
