"""What the options say of scoring and sampling is what scoring and sampling do."""

import re

import pytest

from latentvid.commands import score_demo
from latentvid.demo.scoring import DemoConfig
from latentvid.diffusion import solvers
from latentvid.evaluation import __main__ as scoring_command
from latentvid.evaluation.defaults import SCORE_NAMES
from latentvid.evaluation.metrics import KNOWN
from latentvid.evaluation.scoring import ScoringConfig
from latentvid.pipelines import defaults


def test_names_are_those_of_the_tables():
    assert tuple(KNOWN.scores) == SCORE_NAMES
    assert tuple(solvers.SOLVERS) == defaults.SOLVERS and defaults.SOLVER in defaults.SOLVERS


@pytest.mark.parametrize(
    ("parse", "config"), [(scoring_command.parse, ScoringConfig), (score_demo, DemoConfig)], ids=["scoring", "demo"]
)
def test_defaults_in_the_help_are_those_of_the_configuration(parse, config, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["x", "--help"])
    with pytest.raises(SystemExit):
        parse()
    text = " ".join(capsys.readouterr().out.split())
    found = (re.match(r"([\w-]+) .*\(default (\d+|scores)\)", option) for option in text.split(" --"))
    said = {match[1].replace("-", "_"): match[2] for match in found if match}
    assert len(said) >= 4 and {name: str(getattr(config, name)) for name in said} == said
