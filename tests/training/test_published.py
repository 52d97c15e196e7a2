"""Published models are trained by the one trainer: what a configuration leaves to them, and the loss, against a
reference of one padded sample at a time, written from the published recipe."""

import json
from functools import cache
from itertools import count

import pytest
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLLTXVideo,
    AutoencoderKLMochi,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXTransformer3DModel,
    LTXVideoTransformer3DModel,
    MochiTransformer3DModel,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
)
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from PIL import Image
from transformers import AutoTokenizer, T5EncoderModel, UMT5EncoderModel

from latentvid.config.parsing import ConfigError, load_config
from latentvid.config.schema import DitConfig
from latentvid.data.cache.latents import LatentCache
from latentvid.data.plan.plan import Draw
from latentvid.data.transforms import from_uint8, to_uint8
from latentvid.errors import UserError
from latentvid.packing import unpatchify
from latentvid.rng import generator
from latentvid.training.stages.dit.encode import EncodeConfig, encode_manifest
from latentvid.training.stages.dit.task import DitTask


def task_of(config) -> DitTask:
    return DitTask(config, torch.device("cpu"))


def one_by_one(task: DitTask):
    """Of each sample, two of each shape: its clip [3,F,H,W], caption, posterior noise, noise [C,f,h,w], level; and the
    loss."""
    indices = [i for grid in sorted(set(task.grids)) for i in [i for i, g in enumerate(task.grids) if g == grid][:2]]
    pack = task.make_pack([Draw(10 + number, index) for number, index in enumerate(indices)])
    with torch.no_grad():
        losses, _ = task.loss(task.model, pack, 0)
    noise = unpatchify(pack.noise, pack.layout, task.patch)
    levels = pack.timestep.split([f for f, _, _ in pack.layout.grid])
    samples = zip(pack.videos, pack.captions, pack.posterior, noise, levels, losses.tolist(), strict=True)
    return [(from_uint8(video), *rest) for video, *rest in samples]


def check(task: DitTask, reference) -> None:
    found = one_by_one(task)
    assert len({tuple(video.shape) for video, *_ in found}) > 1
    with torch.no_grad():
        for video, caption, posterior, noise, levels, loss in found:
            assert loss == pytest.approx(float(reference(video, caption, posterior, noise, levels)), rel=1e-5)


def wan_latent(vae: AutoencoderKLWan, video, posterior):
    found = vae.encode(video[None]).latent_dist
    mean, std = (
        torch.tensor(values)[:, None, None, None] for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return (found.mean[0] + found.std[0] * posterior - mean) / std


@cache
def text_parts(folder, cls):
    return (
        AutoTokenizer.from_pretrained(folder / "tokenizer"),
        cls.from_pretrained(folder / "text_encoder").eval(),
    )


def wan_text(folder, caption):
    """Encoded masked, then zeros up to 512."""
    tokenizer, encoder = text_parts(folder, UMT5EncoderModel)
    ids = tokenizer([caption], padding="max_length", max_length=512, truncation=True, return_tensors="pt")
    states = encoder(ids.input_ids, ids.attention_mask).last_hidden_state
    return states * ids.attention_mask[..., None]


def test_wan_text_to_video(repository, published_config, tmp_path):
    folder = repository("wan")
    vae = AutoencoderKLWan.from_pretrained(folder / "vae").eval()
    raw = WanTransformer3DModel.from_pretrained(folder / "transformer").eval()

    def reference(video, caption, posterior, noise, levels):
        x, t = wan_latent(vae, video, posterior), levels[0]
        assert (levels == t).all()
        prediction = raw((1 - t) * x[None] + t * noise[None], 1000 * t[None], wan_text(folder, caption))[0][0]
        return (prediction - (noise - x)).square().mean()

    check(task_of(published_config(tmp_path, folder)), reference)


def test_wan_image_to_video_reads_mask_and_latents_of_the_first_frame(repository, published_config, tmp_path):
    """Of the expert for low noise: mask, then the VAE's mode of the image and zeros."""
    folder = repository("wan_image")
    vae = AutoencoderKLWan.from_pretrained(folder / "vae").eval()
    raw = WanTransformer3DModel.from_pretrained(folder / "transformer_2").eval()

    def reference(video, caption, posterior, noise, levels):
        x, t = wan_latent(vae, video, posterior), levels[0]
        assert t <= 0.9
        still = torch.cat([video[:, :1], torch.zeros_like(video[:, 1:])], dim=1)
        mask = torch.zeros(4, *x.shape[1:])
        mask[:, 0] = 1
        seen = torch.cat([(1 - t) * x + t * noise, mask, wan_latent(vae, still, torch.zeros_like(posterior))])
        prediction = raw(seen[None], 1000 * t[None], wan_text(folder, caption))[0][0]
        return (prediction - (noise - x)).square().mean()

    check(task_of(published_config(tmp_path, folder, "model.expert=low")), reference)


def test_wan_of_a_first_and_a_last_picture_reads_both(repository, published_config, tmp_path):
    """Mask, latents and CLIP's states of both ends of the clip."""
    folder = repository("wan_ends")
    pipe = WanImageToVideoPipeline.from_pretrained(folder)
    task = task_of(published_config(tmp_path, folder))

    def reference(video, caption, posterior, noise, levels):
        x, t = wan_latent(pipe.vae, video, posterior), levels[0]
        still = torch.cat([video[:, :1], torch.zeros_like(video[:, 1:])], dim=1)
        still[:, -1] = video[:, -1]
        mask = torch.zeros(4, *x.shape[1:])
        mask[:, 0] = 1
        mask[-1, -1] = 1
        seen = torch.cat([(1 - t) * x + t * noise, mask, wan_latent(pipe.vae, still, torch.zeros_like(posterior))])
        ends = [Image.fromarray(to_uint8(video)[i].numpy()) for i in (0, -1)]
        prediction = pipe.transformer(
            seen[None], 1000 * t[None], wan_text(folder, caption), pipe.encode_image(ends, "cpu"), return_dict=False
        )[0][0]
        return (prediction - (noise - x)).square().mean()

    check(task, reference)


def test_wan_with_a_level_each_frame_is_given_the_first(repository, published_config, tmp_path):
    """The first latent frame is clean, at level 0, and has no loss."""
    folder = repository("wan_small")
    vae = AutoencoderKLWan.from_pretrained(folder / "vae").eval()
    raw = WanTransformer3DModel.from_pretrained(folder / "transformer").eval()

    def reference(video, caption, posterior, noise, levels):
        x, t = wan_latent(vae, video, posterior), levels[-1]
        z = (1 - t) * x + t * noise
        first = len(levels) > 1
        z[:, : int(first)] = x[:, : int(first)]
        level = 1000 * levels.repeat_interleave(z.shape[2] // 2 * z.shape[3] // 2)[None]
        prediction = raw(z[None], level, wan_text(folder, caption))[0][0]
        return (prediction - (noise - x)).square()[:, int(first) :].mean()

    check(task_of(published_config(tmp_path, folder, "given.plain=0", "given.first=1")), reference)


def t5_text(folder, caption, tokens):
    """Encoded with the padding unmasked: states of all, and which are the caption's own."""
    tokenizer, encoder = text_parts(folder, T5EncoderModel)
    ids = tokenizer([caption], padding="max_length", max_length=tokens, truncation=True, return_tensors="pt")
    return encoder(ids.input_ids).last_hidden_state, ids.attention_mask


def test_cogvideox(repository, published_config, tmp_path):
    """v of whole steps on the path with zero terminal SNR and snr_shift_scale; all padding is attended to."""
    folder = repository("cogvideox")
    vae = AutoencoderKLCogVideoX.from_pretrained(folder / "vae").eval()
    raw = CogVideoXTransformer3DModel.from_pretrained(folder / "transformer").eval()
    signal = CogVideoXDDIMScheduler.from_pretrained(folder / "scheduler").alphas_cumprod

    def reference(video, caption, posterior, noise, levels):
        found, step = vae.encode(video[None]).latent_dist, round(1000 * float(levels[0])) - 1
        x = (found.mean[0] + found.std[0] * posterior) * vae.config.scaling_factor
        alpha, sigma = signal[step].sqrt(), (1 - signal[step]).sqrt()
        z = (alpha * x + sigma * noise).transpose(0, 1)[None]  # frames before channels
        text, _ = t5_text(folder, caption, 226)
        prediction = raw(z, text, torch.tensor([step]))[0][0].transpose(0, 1)
        return (prediction - (alpha * noise - sigma * x)).square().mean()

    check(task_of(published_config(tmp_path, folder)), reference)


def test_ltx(repository, published_config, tmp_path):
    """The flow of one token a latent position, at positions in seconds and pixels by the VAE's strides, here 2 and 8;
    padding of the prompt is seen by the encoder, and masked after it."""
    folder = repository("ltx")
    vae = AutoencoderKLLTXVideo.from_pretrained(folder / "vae").eval()
    raw = LTXVideoTransformer3DModel.from_pretrained(folder / "transformer").eval()
    task = task_of(published_config(tmp_path, folder, "given.first=0"))
    rates = {shape[0]: rate for shape, rate in zip(task.source.shapes, task.source.rates.tolist(), strict=True)}

    def reference(video, caption, posterior, noise, levels):
        found, t = vae.encode(video[None]).latent_dist, levels[0]
        z = found.mean[0] + found.std[0] * posterior
        x = (z - vae.latents_mean[:, None, None, None]) / vae.latents_std[:, None, None, None]
        fps = rates[video.shape[1]] if video.shape[1] > 1 else 25.0
        text, mask = t5_text(folder, caption, 128)
        sizes = dict(zip(("num_frames", "height", "width"), x.shape[1:], strict=True))
        noised = ((1 - t) * x + t * noise).flatten(1).T[None]
        options = dict(encoder_attention_mask=mask, rope_interpolation_scale=(2 / fps, 8, 8), **sizes)
        prediction = raw(noised, text, 1000 * t[None], **options)[0][0]
        return (prediction - (noise - x).flatten(1).T).square().mean()

    check(task, reference)


def test_cogvideox_of_two_frames_a_token_is_given_a_noised_picture(repository, published_config, tmp_path):
    """1.5: an odd number of latent frames has the first one again in front, where the picture's latent is given; it
    has a loss there too."""
    folder = repository("cogvideox_newer_image")
    vae = AutoencoderKLCogVideoX.from_pretrained(folder / "vae").eval()
    raw = CogVideoXTransformer3DModel.from_pretrained(folder / "transformer").eval()
    signal = CogVideoXDDIMScheduler.from_pretrained(folder / "scheduler").alphas_cumprod
    config, numbers = published_config(tmp_path, folder), count(10)  # as `one_by_one` draws them

    def reference(video, caption, posterior, noise, levels):
        number, step = next(numbers), round(1000 * float(levels[0])) - 1
        found = vae.encode(video[None]).latent_dist
        x = (found.mean[0] + found.std[0] * posterior) * vae.config.scaling_factor
        x = torch.cat([x[:, :1]] * (x.shape[1] % 2) + [x], dim=1)
        source = generator(config.run.seed, number, "image-noise")
        spread = torch.exp(-3 + 0.5 * torch.randn((), generator=source))
        image = video[:, :1] + spread * torch.randn(video[:, 0].shape, generator=source)[:, None]
        found = vae.encode(image[None]).latent_dist
        drawn = torch.randn(x[:, :1].shape, generator=generator(config.run.seed, number, "image-posterior"))
        given = torch.zeros_like(x)
        given[:, :1] = (found.mean[0] + found.std[0] * drawn) * vae.config.scaling_factor
        alpha, sigma = signal[step].sqrt(), (1 - signal[step]).sqrt()
        z = torch.cat([alpha * x + sigma * noise, given]).transpose(0, 1)[None]  # frames before channels
        f, h, w = (n // 2 for n in x.shape[1:])
        turned = get_3d_rotary_pos_embed(16, None, (h, w), f, grid_type="slice", max_size=(4, 4))
        text, _ = t5_text(folder, caption, 226)
        told = {"ofs": torch.tensor([2.0]), "image_rotary_emb": turned, "return_dict": False}
        prediction = raw(z, text, torch.tensor([step]), **told)[0][0].transpose(0, 1)
        return (prediction - (alpha * noise - sigma * x)).square().mean()

    check(task_of(config), reference)


def test_mochi(repository, published_config, tmp_path):
    """Its network is told the share of the clip, and predicts x - eps; text is encoded and attended to masked."""
    folder = repository("mochi")
    vae = AutoencoderKLMochi.from_pretrained(folder / "vae").eval()
    raw = MochiTransformer3DModel.from_pretrained(folder / "transformer").eval()
    tokenizer, encoder = text_parts(folder, T5EncoderModel)

    def reference(video, caption, posterior, noise, levels):
        x, t = wan_latent(vae, video, posterior), levels[0]
        ids = tokenizer([caption], padding="max_length", max_length=256, truncation=True, return_tensors="pt")
        text = encoder(ids.input_ids, ids.attention_mask).last_hidden_state
        z = (1 - t) * x + t * noise
        prediction = raw(z[None], text, 1000 * (1 - t)[None], ids.attention_mask.bool(), return_dict=False)[0][0]
        return (prediction - (x - noise)).square().mean()

    check(task_of(published_config(tmp_path, folder)), reference)


def test_a_cache_holds_all_that_the_model_is_given(repository, published_config, digits_data, tmp_path):
    """Latents, the image's, and a caption's own states, which get their zeros back: as of clips, to float16."""
    folder, cache = repository("wan_image"), tmp_path / "cache"
    sizes = dict(max_frames=17, max_area=None, patch=2, batch=4, mixed_precision="no", model=str(folder))
    encode_manifest(EncodeConfig(digits_data / "train.jsonl", None, None, cache, **sizes))
    options = "model.expert=low", "caption.dropout=0.5", "data.max_frames=17"  # whole clips: no window is moved
    of_clips = task_of(published_config(tmp_path, folder, *options))
    of_cache = task_of(published_config(tmp_path, folder, *options, "data.manifest=null", f"data.latents={cache}"))
    assert list(of_clips.grids) == list(of_cache.grids)
    draws = [Draw(number, number) for number in range(6)]
    one, other = (task.prepare(task.make_pack(draws)) for task in (of_clips, of_cache))
    assert one.text_layout.lengths == other.text_layout.lengths == [512] * 6
    for name in ("clean", "text"):
        torch.testing.assert_close(getattr(other, name), getattr(one, name), atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(other.conditions.channels, one.conditions.channels, atol=1e-2, rtol=1e-2)
    assert len(LatentCache(cache).load(0).text) < 32  # the zeros are not stored
    of_text = {"model": str(repository("wan"))}  # whose text encoder is the same
    with pytest.raises(UserError, match=r"does not hold: encode again with vae/encode_latents\.py --model"):
        plain = tmp_path / "plain"
        encode_manifest(EncodeConfig(digits_data / "train.jsonl", folder / "vae", None, plain, **sizes | of_text))
        task_of(published_config(tmp_path, folder, *options, "data.manifest=null", f"data.latents={plain}"))


def test_an_expert_is_trained_on_its_levels(repository, published_config, tmp_path):
    folder = repository("wan_experts")
    high, low = (task_of(published_config(tmp_path, folder, f"model.expert={name}")) for name in ("high", "low"))
    draws = [Draw(number, number % 24) for number in range(40)]
    assert (high.make_pack(draws).timestep >= 0.875).all()
    assert (low.make_pack(draws).timestep <= 0.875).all()
    one, other = (next(task.model.raw.parameters()) for task in (high, low))
    assert not torch.equal(one, other)
    with pytest.raises(UserError, match=r"two transformers.*0\.875.*one at a time.*model\.expert=high, or low"):
        task_of(published_config(tmp_path, folder))
    with pytest.raises(UserError, match=r"model\.expert=high.*has one transformer"):
        task_of(published_config(tmp_path, repository("wan"), "model.expert=high"))


def test_what_the_file_says_goes_before_the_recipe(repository, published_config, tmp_path):
    folder = repository("wan")
    told = DitTask.settled(published_config(tmp_path, folder))
    assert (told.timesteps.kind, told.timesteps.shift) == ("uniform", 3.0)
    assert told.scheduler["target"] == "flow"
    said = DitTask.settled(published_config(tmp_path, folder, "timesteps.shift=1", "scheduler.shift=7"))
    assert said.timesteps.shift == 1.0 and said.scheduler["shift"] == 7  # 1 is the default: it was said all the same
    assert DitTask.settled(told) == told and DitTask.settled(said) == said


@pytest.mark.parametrize(
    "keys, message",
    [
        (["model.width=32"], r"model\.width is that of the model which model\.from names"),
        (["init=elsewhere"], r"model\.from and init both"),
        (["model.dtype=fp16"], r"model\.dtype='fp16': one of fp32, bf16"),
        (["model.dtype=bf16"], r"model\.dtype=bf16 is of weights that are not trained"),
        (["model.expert=middle"], r"model\.expert='middle': one of high, low"),
        (["trainable=[attn1]", "adapter.kind=lora"], r"trainable and adapter both"),
        (["trainable=['(']"], r"trainable: '\(' is no regular expression"),
        (["adapter.rank=4"], r"adapter: rank.*set kind=lora"),
    ],
)
def test_what_does_not_go_together_is_refused(keys, message, published_config, tmp_path):
    with pytest.raises(ConfigError, match=message):
        published_config(tmp_path, "folder", *keys)


def test_without_a_published_model_vae_and_text_encoder_are_required(tmp_path):
    with pytest.raises(ConfigError, match=r"vae is required.*--vae=VALUE, or model\.from"):
        load_config(DitConfig, None, [f"run.dir={tmp_path}"])


def test_levels_out_of_their_range_are_drawn_again():
    from latentvid.diffusion.timesteps import TimestepSampling

    whole, part = TimestepSampling(), TimestepSampling(low=0.25, high=0.5)
    draws = torch.cat([part.draw(generator(0, n, "timestep")) for n in range(200)])
    assert ((draws >= 0.25) & (draws <= 0.5)).all() and abs(float(draws.mean()) - 0.375) < 0.02
    kept = [n for n in range(50) if 0.25 <= float(whole.draw(generator(0, n, "timestep"))) <= 0.5]
    for n in kept:
        assert torch.equal(whole.draw(generator(0, n, "timestep")), part.draw(generator(0, n, "timestep")))


def test_the_settled_configuration_is_kept_with_the_run(repository, published_config, tmp_path):
    config = DitTask.settled(published_config(tmp_path, repository("wan")))
    assert json.dumps(config.model) and config.vae is None and config.timesteps.shift == 3.0
