"""The function itself: stored weights and inputs give the stored outputs, so saved models keep their meaning.

`make.py` says how the files were made. Tests of properties cannot see a change that keeps the property, such as the
sign of the rotary angle, or which axis has which frequencies.
"""

import pytest
import torch
from golden_cases import CASES, FOLDER
from safetensors.torch import load_file


def part(tensors: dict, prefix: str) -> dict:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_of_the_golden_file(name):
    stored = load_file(FOLDER / f"{name}.safetensors")
    want = part(stored, "found.")
    _, compute = CASES[name]
    found = compute(part(stored, "given."))
    assert found.keys() == want.keys()
    for key, value in want.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-4, msg=lambda m, key=key: f"{key}: {m}")
