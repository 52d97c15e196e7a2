"""HunyuanVideo and 1.5 trained by the one trainer, as test_published.py does it for other families: texts and images
are read by diffusers' pipelines, with their padding and masks."""

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from test_published import check, task_of


def latent_of(pipe, video, posterior):
    found = pipe.vae.encode(video[None]).latent_dist
    return (found.mean[0] + found.std[0] * posterior) * pipe.vae.config.scaling_factor


def loaded(folder) -> DiffusionPipeline:
    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.tokenizer_max_length, pipe.tokenizer_2_max_length = 120, 40  # of 1.5: more would be masked
    return pipe


def test_hunyuan_is_told_no_guidance(repository, published_config, tmp_path):
    """A guidance of 1."""
    folder = repository("hunyuan")
    pipe = loaded(folder)

    def reference(video, caption, posterior, noise, levels):
        x, t = latent_of(pipe, video, posterior), levels[0]
        assert (levels == t).all()
        text, pooled, mask = pipe.encode_prompt(caption)
        z = ((1 - t) * x + t * noise)[None]
        told = {"guidance": torch.tensor([1000.0]), "return_dict": False}
        prediction = pipe.transformer(z, 1000 * t[None], text, mask, pooled, **told)[0][0]
        return (prediction - (noise - x)).square().mean()

    check(task_of(published_config(tmp_path, folder)), reference)


def of_1_5(pipe, caption, z, t, given, mask, image):
    """The prediction for a noised latent, latents and mask of what is given, and states of an image."""
    text, text_mask, quoted, quoted_mask = pipe.encode_prompt(prompt=caption, device="cpu")
    told = {
        "encoder_hidden_states_2": quoted,
        "encoder_attention_mask_2": quoted_mask,
        "image_embeds": image,
        "return_dict": False,
    }
    return pipe.transformer(torch.cat([z, given, mask])[None], 1000 * t[None], text, text_mask, **told)[0][0]


def test_hunyuan15_text_to_video(repository, published_config, tmp_path):
    folder = repository("hunyuan15")
    pipe = loaded(folder)

    def reference(video, caption, posterior, noise, levels):
        x, t = latent_of(pipe, video, posterior), levels[0]
        nothing = torch.zeros_like(x)
        z = (1 - t) * x + t * noise
        prediction = of_1_5(pipe, caption, z, t, nothing, nothing[:1], torch.zeros(1, 4, 12))
        return (prediction - (noise - x)).square().mean()

    check(task_of(published_config(tmp_path, folder)), reference)


def test_hunyuan15_image_to_video(repository, published_config, tmp_path):
    """The first frame is the image: its latent and a mask, and SigLIP's states."""
    folder = repository("hunyuan15_image")
    pipe = loaded(folder)

    def reference(video, caption, posterior, noise, levels):
        x, t = latent_of(pipe, video, posterior), levels[0]
        given, mask = torch.zeros_like(x), torch.zeros_like(x[:1])
        given[:, :1] = latent_of(pipe, video[:, :1], torch.zeros_like(posterior[:, :1]))
        mask[:, :1] = 1
        pixels = ((video[:, 0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
        picture = Image.fromarray(pixels.numpy())
        image = pipe._get_image_embeds(pipe.image_encoder, pipe.feature_extractor, picture, "cpu")
        prediction = of_1_5(pipe, caption, (1 - t) * x + t * noise, t, given, mask, image)
        return (prediction - (noise - x)).square().mean()

    check(task_of(published_config(tmp_path, folder)), reference)
