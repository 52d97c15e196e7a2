"""LoRA on U-Nets: which layers it changes, what is written, and that ours, peft and diffusers read the same of it."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AnimateDiffPipeline, DiffusionPipeline, UNet3DConditionModel
from open_animatediff import adapter
from open_models import samples, tokens_of
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, T5EncoderModel

from latentvid.adapters import merge_folder
from latentvid.diffusion.scheduler import LatentVideoScheduler
from latentvid.errors import UserError
from latentvid.models.adapters.lora import load_lora, merge, raw_of
from latentvid.models.autoencoder import CausalVideoAutoencoder
from latentvid.models.kinds import load_network
from latentvid.models.open import Conditions, packed
from latentvid.models.open.animatediff import with_motion
from latentvid.models.open.folder import load_backbone, read_published
from latentvid.packing import Packed
from latentvid.pipelines.arguments import Lora
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.training.stages.dit.task import DitTask

LORA = ("adapter.kind=lora", "adapter.rank=2", "adapter.alpha=3")
KINDS = ("unet3d", "modelscope", "stable_diffusion", "motion", "svd")
GRIDS, WORDS = [(3, 4, 4), (1, 6, 4), (3, 4, 4)], [7, 7, 7]
UNET = dict(
    in_channels=4, out_channels=4, cross_attention_dim=32, block_out_channels=(8, 16), layers_per_block=1,
    norm_num_groups=4, attention_head_dim=2, down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
    up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
)  # fmt: skip


@pytest.fixture(scope="module")
def unet_pipeline(tmp_path_factory, tiny_vae, tiny_t5) -> Path:
    """A pipeline of ours with a 3D U-Net of random weights."""
    folder = tmp_path_factory.mktemp("unet") / "pipeline"
    torch.manual_seed(0)
    LatentVideoPipeline(
        vae=CausalVideoAutoencoder.from_pretrained(tiny_vae),
        transformer=UNet3DConditionModel(**UNET),
        scheduler=LatentVideoScheduler(),
        text_encoder=T5EncoderModel.from_pretrained(tiny_t5),
        tokenizer=AutoTokenizer.from_pretrained(tiny_t5),
        frames=5, height=16, width=16,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture
def motion(tmp_path) -> Path:
    adapter().save_pretrained(tmp_path / "motion")
    return tmp_path / "motion"


@pytest.fixture
def plain(unet_pipeline, repository, motion):
    """`plain(kind)`: the backbone as it is without a LoRA."""

    def make(kind):
        if kind == "unet3d":
            return load_network(unet_pipeline / "transformer")
        model = load_backbone(read_published(repository("stable_diffusion" if kind == "motion" else kind)))
        return with_motion(model, adapter()).eval() if kind == "motion" else model

    return make


@pytest.fixture
def tuned(dit_config, published_config, unet_pipeline, repository, motion, tmp_path):
    """`tuned(kind, *options)`: a run's model with a LoRA whose matrices all count, and the file that the run leaves."""

    def make(kind, *options):
        keys = (*LORA, *options)
        if kind == "unet3d":
            config = dit_config(tmp_path / "run", f"init={unet_pipeline}", "model={}", *keys)
        else:
            more = (f"model.motion={motion}",) if kind == "motion" else ()
            folder = repository("stable_diffusion" if kind == "motion" else kind)
            config = published_config(tmp_path / "run", folder, *more, *keys)
        task = DitTask(config, torch.device("cpu"), data=False)
        for name, parameter in task.model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        task.export(task.model.eval(), tmp_path / "lora")
        assert task.product == "lora"
        return task.model, tmp_path / "lora/pytorch_lora_weights.safetensors"

    return make


@torch.no_grad()
def made_by(model) -> torch.Tensor:
    """What it predicts of a pack of two shapes."""
    made = samples(4, (1, 1, 1), model.text_width, GRIDS, WORDS, [0.9, 0.25, 0.5])
    given, layout = None, Packed.of(GRIDS)
    if model.channels:
        rand = torch.Generator().manual_seed(3)
        channels = torch.randn(layout.tokens, model.channels, generator=rand)
        given = Conditions(channels=channels, image=torch.randn(3, 1, model.image_width, generator=rand))
    tokens, text = torch.cat([tokens_of(s.latent, (1, 1, 1)) for s in made]), torch.cat([s.text for s in made])
    levels = torch.cat([s.levels for s in made])
    return model(tokens, levels, text, layout, Packed.of_lengths(WORDS), fps=torch.full((3,), 8.0), conditions=given)


def by_peft(raw, file):
    """diffusers' class with the file's matrices put in by peft alone."""
    with safe_open(file, "pt") as held:
        config = json.loads(held.metadata()["lora_adapter_metadata"])
    config = {key.removeprefix("unet."): value for key, value in config.items()}
    inject_adapter_in_model(LoraConfig(**{k: config[k] for k in ("r", "lora_alpha", "target_modules")}), raw)
    state = {key.removeprefix("unet."): value for key, value in load_file(file).items()}
    wrong = set_peft_model_state_dict(raw, state)
    assert not wrong.unexpected_keys
    return raw


@pytest.mark.parametrize("kind", KINDS)
def test_a_lora_is_read_as_it_was_trained(kind, tuned, plain, repository):
    """By our programs, merged, and by diffusers' own loader, or peft where diffusers has none for the class."""
    model, file = tuned(kind)
    names = load_file(file).keys()
    assert names and all(name.startswith("unet.") for name in names)
    assert not any("motion_modules" in name for name in names)
    want = made_by(model)
    size = float(want.abs().max())
    loaded = plain(kind)
    assert float((made_by(loaded) - want).abs().max()) > 1e-2 * size
    load_lora(loaded, file.parent)
    torch.testing.assert_close(made_by(loaded), want, rtol=0, atol=1e-5 * size)
    merge(loaded)
    assert not any("lora" in name for name, _ in loaded.named_parameters())
    torch.testing.assert_close(made_by(loaded), want, rtol=0, atol=1e-4 * size)
    if kind == "stable_diffusion":
        theirs = DiffusionPipeline.from_pretrained(repository(kind), local_files_only=True)
    elif kind == "motion":
        theirs = AnimateDiffPipeline.from_pretrained(repository("stable_diffusion"), motion_adapter=adapter())
    else:
        theirs = None
    if theirs is None:
        raw = by_peft(raw_of(plain(kind)), file)
    else:
        theirs.load_lora_weights(file.parent)
        raw = theirs.unet
    torch.testing.assert_close(made_by(packed(raw.eval())), want, rtol=0, atol=1e-5 * size)


def test_one_that_is_trained_beside_motion_modules_goes_into_the_image_model(tuned, plain):
    """And named layers of motion modules are changed where they are asked for."""
    _, file = tuned("motion")
    load_lora(plain("stable_diffusion"), file)
    _, file = tuned("motion", "adapter.targets=[motion_modules.0.transformer_blocks.0.attn1.to_q]")
    assert all("motion_modules.0" in name for name in load_file(file))
    with pytest.raises(UserError, match="find no place in this UNet2DConditionModel"):
        load_lora(plain("stable_diffusion"), file)


def test_one_that_changes_the_text_encoder_is_refused_by_name(tuned, plain, tmp_path):
    _, file = tuned("stable_diffusion")
    more = {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(2, 16)}
    save_file(load_file(file) | more, tmp_path / "both.safetensors")
    with pytest.raises(UserError, match=r"1 of its \d+ tensors .*lora_te_.*they change the text encoder"):
        load_lora(plain("stable_diffusion"), tmp_path / "both.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["unet3d", "modelscope", "stable_diffusion", "svd"])
def test_the_programs_take_it_and_a_folder_with_it_is_loaded(kind, tuned, run, unet_pipeline, repository, tmp_path):
    """By t2v.py, of pictures by i2v.py; merged by ours, and by diffusers where the folder is a repository."""
    model, file = tuned(kind)
    want = made_by(model)
    folder = unet_pipeline if kind == "unet3d" else repository(kind)
    picture = tmp_path / "picture.png"
    Image.new("RGB", (16, 16), (200, 30, 30)).save(picture)
    program, more = ("i2v", ("--image", picture)) if kind == "svd" else ("t2v", ("--height", 16, "--width", 16))
    frames = {"unet3d": 5, "stable_diffusion": 1}.get(kind, 3)
    asked = ("--prompt", "a red 7", "--frames", frames, "--steps", 2, "--seed", 1)
    found = []
    for name, lora in (("plain", ()), ("tuned", ("--lora", file.parent))):
        out = tmp_path / f"{name}.png"
        words = (f"inference/{program}.py", "--model", folder, *more, *asked, *lora, "--output", out, "--device", "cpu")
        status, _, wrong = run(*words)
        assert status == 0, wrong
        found.append(out.read_bytes())
    assert found[0] != found[1]
    merge_folder(folder, tmp_path / "merged", [Lora(file)])
    if kind == "unet3d":
        merged = load_network(tmp_path / "merged/transformer")
    else:
        merged = packed(DiffusionPipeline.from_pretrained(tmp_path / "merged", local_files_only=True).unet.eval())
    torch.testing.assert_close(made_by(merged), want, rtol=0, atol=1e-4 * float(want.abs().max()))
