"""`--motion FOLDER`: what a pipeline of an image model makes then, with LoRA and ControlNets of the image model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

from latentvid.errors import UserError
from latentvid.models.adapters.control_files import base_of, save_control
from latentvid.models.adapters.lora import adapters_in, save_lora
from latentvid.models.adapters.motion_files import load_motion, save_motion
from latentvid.models.control import Control, ControlBranch
from latentvid.models.saved import load_component
from latentvid.models.transformer import VideoDiT
from latentvid.packing import Packed
from latentvid.pipelines.arguments import ControlNet, Lora
from latentvid.pipelines.limit import kinds_of, trained_frames
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Sampling
from latentvid.references import Role

CLIPS = {
    "frames": 9,
    "fps": 12.0,
    "trained": [{"frames": 9, "height": 32, "width": 32, "fps": 12.0, "count": 3}],
    "given": ["plain", "first"],
    "given_shares": {"plain": 0.5, "first": 0.5},
}
NOISE = {"path": "rectified_flow", "target": "flow"}


def image_model(tiny_pipeline: Path) -> VideoDiT:
    return load_component(VideoDiT, tiny_pipeline / "transformer")


def lively(module: torch.nn.Module, seed: int) -> None:
    rand = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=rand))


def write_module(tiny_pipeline: Path, folder: Path, trained: bool) -> Path:
    image = image_model(tiny_pipeline)
    arguments = {key: value for key, value in image.config.items() if not key.startswith("_")}
    model = VideoDiT(**arguments | {"attention": "inflated", "temporal_stride": 4})
    if trained:
        lively(model.temporal, 1)
    save_motion(model, folder, base_of(image, "there"), NOISE, CLIPS)
    return folder


@pytest.fixture(scope="module")
def motion(tmp_path_factory, tiny_pipeline) -> Path:
    return write_module(tiny_pipeline, tmp_path_factory.mktemp("modules") / "motion", trained=True)


def sampled(pipeline, **words) -> torch.Tensor:
    return pipeline(
        "a red 7 moves up", **words, sampling=Sampling(steps=2, progress=False), output_type="uint8"
    ).frames[0]


def test_a_pipeline_of_images_makes_clips_as_the_module_was_trained(motion, tiny_pipeline, run, tmp_path, capsys):
    pipeline = load_pipeline(tiny_pipeline, "cpu", motion=motion)
    assert f"motion module {motion}\n" in capsys.readouterr().err
    config = pipeline.config
    assert (config.frames, config.fps, config.height, tuple(config.given)) == (9, 12.0, 32, ("plain", "first"))
    assert [kind.frames for kind in kinds_of(pipeline)] == [9] and trained_frames(pipeline) == 9
    plain = load_pipeline(tiny_pipeline, "cpu")
    assert sampled(pipeline).shape[0] == 9
    assert torch.equal(
        sampled(pipeline, num_frames=1), sampled(plain, num_frames=1)
    )  # of pictures it is the image model
    words = ("--model", tiny_pipeline, "--prompt", "a red 7", "--steps", 1, "--output", tmp_path / "clip.gif")
    status, _, said = run("inference/t2v.py", *words, "--motion", motion)
    assert status == 0 and f"motion module {motion}" in said and (tmp_path / "clip.gif").is_file()


@torch.no_grad()
def test_lora_and_controlnets_of_the_image_model_act_on_each_frame(tiny_pipeline, tmp_path, capsys):
    """Beside a module that does nothing yet each frame is what they make of it as a picture."""
    still, image = write_module(tiny_pipeline, tmp_path / "still", trained=False), image_model(tiny_pipeline)
    image.controls.append(ControlBranch(image, 1))
    lively(image.controls, 2)
    net, base = tmp_path / "net", base_of(image_model(tiny_pipeline), "there")
    save_control(image, net, "edges", Role(place="control", signal="canny"), base)
    tuned = image_model(tiny_pipeline)
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=4, target_modules=["query", "out"]), tuned)
    for name, p in tuned.named_parameters():
        if "lora_" in name:
            p.normal_(std=0.3)
    lora = save_lora(tuned, tmp_path)
    beside = {"control": [ControlNet(net)], "lora": [Lora(lora)]}
    moves, plain = (load_pipeline(tiny_pipeline, "cpu", motion=m, **beside).transformer for m in (still, None))
    assert "other weights" not in capsys.readouterr().err  # the ControlNet knows its image model
    assert len(adapters_in(moves)) == 1 and len(moves.controls) == 1
    f, h, w = 3, 2, 4
    tokens, signal = torch.randn(2, f * h * w, 16).unbind(0)
    level, text = torch.rand(f), torch.randn(5, 32)
    whole = moves(tokens, level, text, Packed.of([(f, h, w)]), Packed.of_lengths([5]), control=Control.of(signal))
    one = Packed.of([(1, h, w)] * f), Packed.of_lengths([5] * f)
    frames = plain(tokens, level, text.repeat(f, 1), *one, control=Control.of(signal))
    torch.testing.assert_close(whole, frames, rtol=1e-4, atol=1e-4)
    pipeline = load_pipeline(tiny_pipeline, "cpu", motion=still, lora=beside["lora"])
    with pytest.raises(
        UserError, match=r"has adapters in it \(pytorch_lora_weights\): save one that was loaded without"
    ):
        pipeline.save_pretrained(tmp_path / "whole")  # which none could load again
    assert not (tmp_path / "whole").exists()
    for more in ({"control": beside["control"]}, {"lora": beside["lora"]}):
        other = load_pipeline(tiny_pipeline, "cpu", motion=still, **more).transformer
        told = {"control": Control.of(signal)} if "control" in more else {}
        found = other(tokens, level, text, Packed.of([(f, h, w)]), Packed.of_lengths([5]), **told)
        assert not torch.allclose(found, whole, atol=1e-2)


def test_what_does_not_belong_together_is_named(motion, tiny_pipeline, repository, tmp_path):
    def said(folder: Path, model: Path = tiny_pipeline) -> str:
        with pytest.raises(UserError) as error:
            load_pipeline(model, "cpu", motion=folder)
        return str(error.value)

    held = json.loads((motion / "config.json").read_text())

    def changed(**changes) -> Path:
        folder = shutil.copytree(motion, tmp_path / f"changed{len(list(tmp_path.iterdir()))}")
        (folder / "config.json").write_text(json.dumps(held | changes))
        return folder

    assert "is for latent frames of 8 frames, and this model's are of 4" in said(changed(temporal_stride=8))
    assert "was trained with the noise of" in said(changed(noise={"path": "cosine", "target": "v"}))
    assert "clips.frames=0" in said(changed(clips=CLIPS | {"frames": 0}))
    assert "holds a MotionModule, not a MotionAdapter" in said(motion, repository("wan"))
    clips, index = shutil.copytree(tiny_pipeline, tmp_path / "clips"), tiny_pipeline / "model_index.json"
    (clips / "model_index.json").write_text(json.dumps(json.loads(index.read_text()) | {"trained": CLIPS["trained"]}))
    assert "this one was trained on clips of up to 9 frames, of which its blocks would see one" in said(motion, clips)
    whole = tmp_path / "whole"
    pipeline = load_pipeline(tiny_pipeline, "cpu", motion=motion)
    pipeline.save_pretrained(whole)
    assert "has temporal blocks already" in said(motion, whole)
    assert load_motion(image_model(tiny_pipeline), motion).clips == CLIPS
