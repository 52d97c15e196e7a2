"""The benchmarks of methods: what they would train can be trained, and their tables show what was measured."""

import importlib
from pathlib import Path

import pytest

from latentvid.config.parsing import load_config
from latentvid.config.schema import DitConfig, VaeConfig
from latentvid.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def read(kind: type, stage: str, name: str, options: tuple[str, ...]):
    return load_config(kind, ROOT / f"configs/{stage}/{name}.yaml", [option.removeprefix("--") for option in options])


def test_every_method_is_a_configuration_of_its_own(benchmark):
    digits, footage = benchmark("methods"), benchmark("footage_methods")
    usual = read(DitConfig, "dit", "demo", ())
    for name, options in digits.METHODS.items():
        assert not options or read(DitConfig, "dit", "demo", options) != usual, name
    for options in digits.AUTOENCODERS.values():
        read(VaeConfig, "vae", "demo", options)
    for of_vae, of_dit in footage.METHODS.values():
        read(VaeConfig, "vae", "laptop", of_vae), read(DitConfig, "dit", "laptop", of_dit)
    assert len(set(footage.METHODS.values())) == len(footage.METHODS)
    with pytest.raises(UserError, match="unknown key"):
        read(VaeConfig, "vae", "laptop", ("--loss.equivarianse=1",))


def test_the_table_of_footage_has_a_row_a_method(benchmark):
    found = benchmark("footage_methods")
    scores = {name: {"value": 2.5, "interval": [2.0, 3.0]} for name in found.DISTANCES}
    row = {
        "method": "base",
        "vae": {"steps": 7, "seconds": 1.0},
        "dit": {"steps": 9, "seconds": 2.0},
        "reconstruction": dict.fromkeys(found.VAE_SCORES, 0.125),
        "scores": scores,
    }
    head, _, *lines = found.table([row, row | {"method": "other"}]).splitlines()
    assert [line.split(" | ")[0] for line in lines] == ["| base", "| other"]
    cells = dict(zip(head.strip("| ").split(" | "), lines[0].strip("| ").split(" | "), strict=True))
    assert cells["steps of the autoencoder"] == "7" and cells["of the transformer"] == "9"
    assert cells["fvd"] == "2.5" and cells["lpips"] == "0.125"
