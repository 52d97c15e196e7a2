"""The function itself: stored weights and inputs give the stored outputs, so saved models keep their meaning.

`make.py` says how the files were made. Tests of properties cannot see a change that keeps the property, such as the
sign of the rotary angle, or which axis has which frequencies.
"""

import json

import pytest
import torch
from golden_cases import CASES, FOLDER, draws, sampled
from safetensors.torch import load_file

from latentvid.pipelines.latent_video import LatentVideoPipeline


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


def test_seeds_mean_what_they_meant():
    """Runs go on from old checkpoints, and old prompts with old seeds give the same clips."""
    want, found = json.loads((FOLDER / "draws.json").read_text(encoding="utf-8")), draws()
    assert found.keys() == want.keys()
    for name in want:
        if name == "noise levels":
            torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(want[name]), rtol=1e-5, atol=1e-6)
        else:
            assert found[name] == want[name], name


def test_a_pipeline_saved_long_ago_loads_and_samples_as_it_did():
    """Saved folders name classes by their modules, and tensors by the parameters' names."""
    folder = FOLDER / "pipeline"
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    assert index["_class_name"] == "LatentVideoPipeline"
    assert index["transformer"] == ["latentvid.models.transformer", "VideoDiT"]
    assert index["vae"] == ["latentvid.models.autoencoder", "CausalVideoAutoencoder"]
    assert index["scheduler"] == ["latentvid.diffusion.scheduler", "LatentVideoScheduler"]
    pipeline = LatentVideoPipeline.from_pretrained(folder)
    assert (pipeline.config.frames, pipeline.config.steps, list(pipeline.config.given)) == (9, 4, ["plain", "first"])
    want, found = load_file(FOLDER / "sampled.safetensors"), sampled(pipeline)
    assert found.keys() == want.keys()
    for name, value in want.items():
        if name.startswith("latent"):
            torch.testing.assert_close(
                found[name], value, rtol=1e-3, atol=1e-3, msg=lambda m, name=name: f"{name}: {m}"
            )
        else:
            assert (found[name].int() - value.int()).abs().max() <= 2, name
