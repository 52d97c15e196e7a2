"""HunyuanVideo and 1.5 sampled by our pipeline, as test_open_video.py does it for other families."""

import test_open_video
from diffusers import DiffusionPipeline
from test_open_video import NEGATIVE, PROMPTS, SIZES, STEPS, compare, image, loaded, picture, sampling, theirs_of
from torch import Tensor


def padded_less(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """With fewer masked tokens, of which no result depends: the pipeline has 1,000, 256 and 729."""
    pipe.tokenizer_max_length, pipe.tokenizer_2_max_length, pipe.vision_num_semantic_tokens = 120, 40, 4
    return pipe


def test_hunyuan_is_told_guidance(repository):
    """And with an unconditional pass beside, which it was not trained for."""
    ours, theirs = loaded(repository("hunyuan"))
    compare(ours, theirs_of(theirs, guidance_scale=4.0), [{}, {}], sampling(1.0, guidance_embedded=4.0))
    run = theirs_of(theirs, guidance_scale=6.0, true_cfg_scale=3.0)
    compare(ours, run, [{}, {}], sampling(3.0))


def test_hunyuan15(repository, monkeypatch):
    """Of its prompts one has a text in quotation marks."""
    monkeypatch.setattr(test_open_video, "PROMPTS", ['a red 7 says "up"', PROMPTS[1]])
    ours, theirs = loaded(repository("hunyuan15"))
    compare(ours, theirs_of(padded_less(theirs)), [{}, {}], sampling(6.0))


def test_hunyuan15_from_pictures(repository):
    """Its pipeline chooses the size by the picture's."""
    ours, theirs = loaded(repository("hunyuan15_image"))
    padded_less(theirs)

    def run(i: int, latents: Tensor) -> Tensor:
        words = {"prompt": PROMPTS[i], "negative_prompt": NEGATIVE, "num_inference_steps": STEPS}
        sizes = {"image": image(picture(i)), "num_frames": SIZES[i][0]}
        return theirs(**words, **sizes, latents=latents[None], output_type="latent").frames[0]

    begun = ours.begin_with([picture(0), picture(1)], [ours.latent_grid(*size) for size in SIZES])
    compare(ours, run, begun, sampling(6.0))
