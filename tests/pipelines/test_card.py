"""Model cards of saved pipelines, and the way to the hub and back, by a stand-in for the hub."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import Hub
from PIL import Image

from latentvid.config.parsing import save_config
from latentvid.errors import UserError
from latentvid.pipelines.card import MARK, license_of
from latentvid.pipelines.loading import load_pipeline

ROOT = Path(__file__).parents[2]
KINDS = [
    {"frames": 5, "height": 32, "width": 32, "fps": 12.0, "count": 1200},
    {"frames": 1, "height": 64, "width": 32, "count": 34},
]


@pytest.fixture
def pipeline(tiny_pipeline):
    return load_pipeline(tiny_pipeline, "cpu")


@pytest.fixture
def picture(tmp_path) -> Path:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "look.png")
    return tmp_path / "look.png"


def test_the_card_says_what_the_folder_holds(pipeline, picture, tmp_path):
    pipeline.register_to_config(trained=KINDS)
    pipeline.save_pretrained(tmp_path / "out", license="apache-2.0", samples=[picture])
    card = (tmp_path / "out/README.md").read_text()
    assert card.startswith("---\nlibrary_name: diffusers\n") and "\nlicense: apache-2.0\n" in card.split("---")[1]
    assert "1,200 clips and 34 pictures" in card and "| 1,200 | 5 | 32 | 32 | 12 |" in card
    assert "| 34 | 1 | 64 | 32 |  |" in card
    count = sum(p.numel() for p in pipeline.transformer.parameters())
    assert f"transformer {count / 1e6:,.1f}M" in card
    assert "![sample](samples/1.png)" in card and (tmp_path / "out/samples/1.png").read_bytes() == picture.read_bytes()
    assert "num_frames=5" in card and "under apache-2.0" in card
    assert load_pipeline(tmp_path / "out", "cpu").config.frames == 5


def test_a_card_of_ones_own_stays_and_a_license_comes_later(pipeline, picture, tmp_path):
    pipeline.save_pretrained(tmp_path / "out", samples=[picture])
    card = tmp_path / "out/README.md"
    assert "license:" not in card.read_text() and "Not stated" in card.read_text()
    license_of(tmp_path / "out", "mit")
    assert "\nlicense: mit\n" in card.read_text() and "samples/1.png" in card.read_text()
    card.write_text(card.read_text().replace(MARK, "") + "my words")
    pipeline.save_pretrained(tmp_path / "out", license="other")
    assert card.read_text().endswith("my words") and "license: mit" in card.read_text()


def test_what_no_card_can_say_is_refused(pipeline, tmp_path):
    with pytest.raises(UserError, match="give an identifier as the hub has it"):
        pipeline.save_pretrained(tmp_path / "out", license="mit\ntags: x")
    with pytest.raises(UserError, match="sample .*none.png: must be a file"):
        pipeline.save_pretrained(tmp_path / "out", samples=[tmp_path / "none.png"])


PROGRAM = """
import os, sys, torch
from pathlib import Path
from latentvid.config.parsing import load_config
from latentvid.config.schema import DitConfig
from latentvid.errors import UserError
from latentvid.models.interchange import load_vae
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.loading import load_pipeline
from latentvid.training.stages.dit.task import DitTask

local = load_pipeline(sys.argv[1], "cpu")
print(local.push_to_hub("me/clips", license="mit", token="hf_x"))
task = DitTask(load_config(DitConfig, Path(sys.argv[2]), ["init=me/clips"]), torch.device("cpu"))
weights = dict(task.model.named_parameters())
assert weights.keys() == dict(local.transformer.named_parameters()).keys()
assert all(torch.equal(weights[name], value) for name, value in local.transformer.named_parameters())
assert {file.parent.name for file in Path(os.environ["HF_HOME"]).rglob("*.safetensors")} == {"transformer"}
words = dict(num_frames=5, num_inference_steps=2, output_type="uint8")
for far in (load_pipeline("me/clips", "cpu"), LatentVideoPipeline.from_pretrained("me/clips")):
    assert torch.equal(far("a red 7", **words).frames[0], local("a red 7", **words).frames[0])
state = local.vae.state_dict()
assert all(torch.equal(a, state[k]) for k, a in load_vae("me/clips").state_dict().items())
try:
    load_pipeline("me/none", "cpu")
except UserError as error:
    print(error)
"""


def test_a_pipeline_goes_to_the_hub_and_comes_back_by_its_name(tiny_pipeline, dit_config, tmp_path):
    """As `--model`, `--vae`, and `--init`, which fetches the transformer's weights alone."""
    save_config(dit_config(tmp_path / "run", "model={}", "optim.schedule=constant"), tmp_path / "dit.yaml")
    hub = Hub()
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    env |= {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny_pipeline), str(tmp_path / "dit.yaml")],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    hub.shutdown()
    assert run.returncode == 0, run.stderr + "\n".join(hub.asked)
    *said, missing = run.stdout.splitlines()
    assert any(line.startswith(f"{hub.address}/me/clips/commit/") for line in said)
    assert "me/none is neither a folder nor found on the hub" in missing
    held = hub.files["me/clips"]
    assert b"license: mit" in held["README.md"] and "transformer/diffusion_pytorch_model.safetensors" in held
