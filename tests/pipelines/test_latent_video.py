"""The pipeline: saved equals loaded, a clip is its prompt's and seed's alone, and bad requests are said."""

import json
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentvid.diffusion.guidance import Guidance
from latentvid.errors import UserError
from latentvid.models.interchange import load_vae
from latentvid.models.transformer import VideoDiT
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Sampling

RED, BLUE = "a red 7 moves up", "a blue three bounces down"


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline) -> LatentVideoPipeline:
    return load_pipeline(tiny_pipeline, "cpu")


def make(pipeline: LatentVideoPipeline, prompt, **options) -> list[torch.Tensor]:
    """`guidance` is the scale, `solver` and `steps` are of the sampling, the rest are the call's own."""
    sampling = {k: options.pop(k) for k in ("steps", "solver", "condition") if k in options}
    if "guidance" in options:
        sampling["guidance"] = Guidance(scale=options.pop("guidance"))
    return pipeline(prompt, sampling=Sampling(progress=False, **sampling), **options, output_type="uint8").frames


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal up to one grey level: rounding of values that differ by 1e-6."""
    return a.shape == b.shape and (a.int() - b.int()).abs().max() <= 1


def test_saved_equals_loaded(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path, "cpu")
    one, other = (make(p, [RED, BLUE], seed=3) for p in (pipeline, loaded))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert dict(loaded.scheduler.config) == dict(pipeline.scheduler.config)
    assert (loaded.config.frames, loaded.config.steps) == (5, 3)


def test_defaults_are_the_models(pipeline):
    output = pipeline(RED, output_type="uint8")
    assert [tuple(clip.shape) for clip in output.frames] == [(5, 32, 32, 3)] and output.frames[0].dtype == torch.uint8
    assert output.fps == 8.0
    assert output.frames[0].float().std() > 1
    assert torch.equal(output.frames[0], make(pipeline, RED, steps=3, guidance=3.0)[0])
    assert not close(output.frames[0], make(pipeline, RED, steps=4, guidance=3.0)[0])
    assert not close(output.frames[0], make(pipeline, RED, steps=3, guidance=1.0)[0])


@pytest.mark.parametrize("options", [{"guidance": 3.0}, {"guidance": 1.0}, {"guidance": 3.0, "solver": "ddpm"}])
def test_alone_equals_packed_in_mixed_shapes(pipeline, options):
    """Each clip of a call is that of its prompt, shape and seed + i alone."""
    prompts = [RED, BLUE, RED, ""]
    sizes = {"num_frames": [5, 1, 9, 5], "height": [32, 32, 16, 48], "width": [32, 48, 32, 32]}
    together = make(pipeline, prompts, seed=10, **sizes, **options)
    for i, clip in enumerate(together):
        size = {name: values[i] for name, values in sizes.items()}
        assert tuple(clip.shape) == (size["num_frames"], size["height"], size["width"], 3)
        assert close(clip, make(pipeline, prompts[i], seed=10 + i, **size, **options)[0])


def test_seed_prompt_and_order_decide(pipeline):
    first, second = make(pipeline, [RED, RED], seed=4)
    assert not close(first, second)  # the i-th prompt has seed + i
    assert close(second, make(pipeline, RED, seed=5)[0])
    assert torch.equal(first, make(pipeline, [RED, RED], seed=4)[0])
    assert not close(first, make(pipeline, BLUE, seed=4)[0])


def test_guidance_one_is_the_conditional_branch_alone(pipeline, monkeypatch):
    segments = []
    forward = VideoDiT.forward

    def spy(self, tokens, timestep, text, layout, *more, **rest):
        segments.append(layout.segments)
        return forward(self, tokens, timestep, text, layout, *more, **rest)

    monkeypatch.setattr(VideoDiT, "forward", spy)
    plain = make(pipeline, RED, guidance=1.0)[0]
    assert segments == [1, 1, 1]  # half the work
    assert close(plain, make(pipeline, RED, guidance=1.0, negative_prompt=BLUE)[0])
    assert close(plain, make(pipeline, RED, guidance=1.0 + 1e-6)[0])
    assert segments[-1] == 2 and not close(plain, make(pipeline, RED, guidance=3.0)[0])


def test_text_is_read_once_a_clip_and_not_once_a_step(pipeline):
    calls = []
    layers = [block.cross.key_value for block in pipeline.transformer.blocks]
    hooks = [layer.register_forward_hook(lambda *_: calls.append(1)) for layer in layers]
    make(pipeline, RED, steps=4, guidance=3.0)
    for hook in hooks:
        hook.remove()
    assert len(calls) == len(layers)


def test_compiled_blocks_give_the_same_clips_of_all_shapes_without_recompiling(pipeline, tiny_pipeline, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # inductor takes a minute
    torch._dynamo.reset()
    compiled = load_pipeline(tiny_pipeline, "cpu", compiled=True)
    for prompts, frames, strict in (([RED, BLUE], [9, 5], False), ([RED, BLUE, RED], [5, 5, 9], True)):
        with torch._dynamo.config.patch(error_on_recompile=strict):
            got = make(compiled, prompts, num_frames=frames, height=48)
        want = make(pipeline, prompts, num_frames=frames, height=48)
        assert all(close(a, b) for a, b in zip(got, want, strict=True))
    assert all(block.compiled is not None for block in compiled.transformer.blocks)


def test_guidance_of_a_prompt_by_itself_is_no_guidance(pipeline):
    assert close(make(pipeline, RED, guidance=5.0, negative_prompt=RED)[0], make(pipeline, RED, guidance=1.0)[0])


def test_negative_prompts_steer_one_for_all_or_one_each(pipeline):
    plain = make(pipeline, [RED, RED])
    both = make(pipeline, [RED, RED], negative_prompt=BLUE)
    second = make(pipeline, [RED, RED], negative_prompt=["", BLUE])
    assert not close(plain[0], both[0])
    assert close(plain[0], second[0]) and close(both[1], second[1])


def test_noise_in_the_steps_changes_the_clip_and_is_seeded(pipeline):
    noisy = make(pipeline, RED, solver="ddpm")[0]
    assert not close(noisy, make(pipeline, RED)[0]) and torch.equal(noisy, make(pipeline, RED, solver="ddpm")[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 6}, r"6 frames: .* such as 5 or 9"),
        ({"num_frames": 0}, r"frames=0: must be a whole number"),
        ({"height": 36}, r"36 x 32 pixels: .* multiples of 8, such as 32 x 32"),  # the VAE alone would take it
        ({"height": 30, "width": 45}, r"30 x 45 pixels: .* multiples of 8, such as 32 x 48"),
        ({"width": 0}, r"width=0: must be a whole number"),
        ({"steps": 0}, r"steps=0: must be a whole number"),
        ({"width": [32, 32]}, r"width: 2 given, and the prompts are 1"),
        ({"negative_prompt": ["a", "b"]}, r"negative_prompt: 2 given, and the prompts are 1"),
        ({"prompt": "a red 7 moves up " * 20}, r"prompt of \d+ tokens is longer than the text encoder's 24"),
        ({"negative_prompt": "blue " * 40}, r"longer than the text encoder's 24"),
        ({"prompt": []}, r"0 prompts"),
        ({"num_frames": 2**70}, r"frames=\d+: must be a whole number"),
        ({"num_frames": 5.0}, r"frames=5: must be a whole number"),
        ({"height": float("nan")}, r"height=nan: must be a whole number"),
        ({"seed": -1}, r"seed=-1: must be a whole number from 0"),
        (
            {"num_frames": 9_999_997, "height": 16_384, "width": 16_384},
            r"9,999,997 frames of 16384 x 16384 pixels take [\d,.]+ GiB decoded, and [\d,.]+ GiB are free",
        ),
    ],
)
def test_bad_requests_are_said(pipeline, options, message):
    with pytest.raises(UserError, match=message):
        make(pipeline, **{"prompt": RED, **options})


def test_the_sizes_that_are_proposed_are_taken(pipeline):
    assert make(pipeline, RED, height=32, width=8, num_frames=9, steps=1)[0].shape == (9, 32, 8, 3)


def drop_tensor(file):
    """Diffusers would only warn of the missing tensor, and sample with a random one."""
    weights = load_file(file)
    weights.pop("tokens_out.weight")
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: shutil.rmtree(p), "there is no model folder"),
        (lambda p: (p / "model_index.json").unlink(), "is not a pipeline"),
        (lambda p: (p / "model_index.json").write_text("{"), "is damaged"),
        (
            lambda p: (p / "transformer/diffusion_pytorch_model.safetensors").unlink(),
            "transformer has no weights",
        ),
        (lambda p: shutil.rmtree(p / "vae"), "vae is missing"),
        (lambda p: (p / "vae/diffusion_pytorch_model.safetensors").write_bytes(b"xx"), "cannot be loaded"),
        (lambda p: (p / "text_encoder/model.safetensors").unlink(), "text_encoder has no weights"),
        (
            lambda p: drop_tensor(p / "transformer/diffusion_pytorch_model.safetensors"),
            r"1 missing \(tokens_out.weight\)",
        ),
    ],
)
def test_incomplete_folders_are_said(tiny_pipeline, tmp_path, spoil, message):
    folder = shutil.copytree(tiny_pipeline, tmp_path / "model")
    spoil(folder)
    with pytest.raises(UserError, match=message):
        load_pipeline(folder, "cpu")


def test_a_folder_of_another_model_is_said(tiny_pipeline, tiny_vae, tmp_path):
    with pytest.raises(UserError, match="holds a VideoDiT, not a VAE that latentvid knows"):
        load_vae(tiny_pipeline / "transformer")
    with pytest.raises(UserError, match="is not a pipeline"):
        load_pipeline(tiny_vae)
    with pytest.raises(UserError, match=f"is not a pipeline .*: give {tmp_path}/run/pipeline"):
        load_pipeline(shutil.copytree(tiny_pipeline, tmp_path / "run" / "pipeline").parent)
    folder = shutil.copytree(tiny_pipeline / "vae", tmp_path / "vae")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "widths": [16, 16, 16]}))
    with pytest.raises(UserError, match="of another shape"):
        load_vae(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        load_vae(folder)
