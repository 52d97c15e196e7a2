"""Trains the diffusion transformer.

    latentvid train-dit CONFIG [--section.key value ...]

--dry-run says what the run would be, and stops. Started again with the same configuration it goes on from the newest
checkpoint in run.dir; SIGTERM, SIGUSR1 and Ctrl-C save and end it with status 75. It leaves RUN/metrics.jsonl,
RUN/checkpoints/, RUN/samples/ and RUN/pipeline/, which `latentvid t2v` takes.
"""

from ..config.parsing import parse_cli
from ..config.schema import DitConfig
from ..errors import user_errors


@user_errors()
def main() -> None:
    config = parse_cli(DitConfig, doc=__doc__, kinds=("dit", "open"))
    # after the command line is read: --help and wrong options are answered at once
    from ..training.stages.dit.choice import dit_task
    from ..training.trainer import train

    train(config, dit_task)
