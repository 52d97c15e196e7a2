"""Rollouts: any length, as it is made, in constant memory; each clip its own prompt's, beginning's and seed's alone."""

import gc
from itertools import islice

import pytest
import torch

from latentvid.diffusion.guidance import Guidance
from latentvid.diffusion.scheduler import LatentVideoScheduler
from latentvid.errors import UserError
from latentvid.models.key_value_cache import KeyValueCache
from latentvid.models.transformer import VideoDiT
from latentvid.packing import Packed, unpatchify
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.rollout import Ask, causal_latents, rollout, window_seed
from latentvid.pipelines.sampling import Request, Sampling, draw_noise
from latentvid.rng import generator

RED, BLUE = "a red 7 moves up", "a blue three bounces down"
WAYS = (False, True)
SIZE = {"window": 9, "context": 5}  # 3 latent frames, 2 of them given


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline) -> LatentVideoPipeline:
    """Causal, and as if trained with given frames, so that it can roll out in both ways."""
    pipeline = load_pipeline(tiny_pipeline, "cpu")
    causal = VideoDiT(**{**pipeline.transformer.config, "attention": "causal"})
    causal.load_state_dict(pipeline.transformer.state_dict())
    pipeline.register_modules(transformer=causal.eval())
    pipeline.register_to_config(given=("plain", "prefix"))
    return pipeline


@pytest.fixture
def plain(tiny_pipeline) -> LatentVideoPipeline:
    return load_pipeline(tiny_pipeline, "cpu")


def options(steps: int = 1, scale: float = 2.0, **more) -> Sampling:
    return Sampling(steps=steps, guidance=Guidance(scale=scale), progress=False, **more)


def roll(pipeline, prompts, frames, sampling=None, **more) -> list[torch.Tensor]:
    """The clips of a rollout, joined."""
    pieces = list(rollout(pipeline, prompts, frames, sampling=sampling or options(), **{**SIZE, **more}))
    return [torch.cat(parts) for parts in zip(*pieces, strict=True)]


def clip(frames: int, seed: int, height: int = 32, width: int = 32) -> torch.Tensor:
    """A soft moving pattern, which the autoencoder represents."""
    draw = torch.rand(1, 3, frames, 4, 4, generator=torch.Generator().manual_seed(seed))
    soft = torch.nn.functional.interpolate(draw, (frames, height, width), mode="trilinear")[0]
    return (soft * 255).to(torch.uint8).movedim(0, -1).contiguous()


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal up to one grey level: rounding of values that differ by 1e-6."""
    return a.shape == b.shape and (a.int() - b.int()).abs().max() <= 1


# --- what both ways promise ---


@pytest.mark.parametrize("cached", WAYS)
def test_the_length_is_what_was_asked_and_a_longer_one_begins_with_it(pipeline, cached):
    long = roll(pipeline, [RED], 17, cached=cached)[0]
    assert tuple(long.shape) == (17, 32, 32, 3) and long.dtype == torch.uint8
    for frames in (1, 9, 10, 13, 16):
        assert torch.equal(roll(pipeline, [RED], frames, cached=cached)[0], long[:frames])


@pytest.mark.parametrize("cached", WAYS)
def test_windows_are_yielded_as_they_are_made(pipeline, cached):
    endless = rollout(pipeline, [RED], 10**9, cached=cached, sampling=options(), **SIZE)
    assert [len(piece[0]) for piece in islice(endless, 3)] == [9, 4, 4]


@pytest.mark.parametrize("cached", WAYS)
def test_the_first_window_is_the_clip_that_the_pipeline_makes(pipeline, cached):
    alone = pipeline(RED, num_frames=9, seed=4, sampling=options(), output_type="uint8").frames[0]
    assert close(roll(pipeline, [RED], 9, cached=cached, seed=4)[0], alone)


@pytest.mark.parametrize("cached", WAYS)
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("sampling", [options(2, solver="ddpm"), options(scale=1.0)])
def test_alone_equals_packed(pipeline, cached, given, sampling):
    clips = [clip(8, 1), clip(5, 2)] if given else None
    both = roll(pipeline, [RED, BLUE], 13, sampling, cached=cached, clips=clips, seed=3)
    for i, prompt in enumerate((RED, BLUE)):
        own = None if clips is None else clips[i : i + 1]
        assert close(both[i], roll(pipeline, [prompt], 13, sampling, cached=cached, clips=own, seed=3 + i)[0])


@pytest.mark.parametrize("cached", WAYS)
def test_prompt_seed_and_each_windows_own_noise_decide(pipeline, cached):
    first = roll(pipeline, [RED], 17, cached=cached)[0]
    assert not close(first, roll(pipeline, [RED], 17, cached=cached, seed=1)[0])
    assert not close(first, roll(pipeline, [BLUE], 17, cached=cached)[0])
    assert not close(first, roll(pipeline, [RED], 17, cached=cached, negative_prompt=BLUE)[0])
    assert len({window_seed(seed, k) for seed in range(5) for k in range(5)}) == 25
    assert window_seed(7, 0) == 7


@pytest.mark.parametrize("cached", WAYS)
def test_only_the_end_of_a_clip_matters_and_it_does(pipeline, cached):
    long = clip(12, 5)
    new = roll(pipeline, [RED], 6, cached=cached, clips=[long])[0]
    assert len(new) == 6
    assert torch.equal(new, roll(pipeline, [RED], 6, cached=cached, clips=[long[-5:]])[0])
    for frame in (-1, -5):
        changed = long.clone()
        changed[frame] = 255 - changed[frame]
        assert not close(new, roll(pipeline, [RED], 6, cached=cached, clips=[changed])[0])


@pytest.mark.parametrize("cached", WAYS)
def test_clips_of_other_sizes_go_together(pipeline, cached):
    clips = [clip(5, 1), clip(6, 2, 48, 16)]
    both = roll(pipeline, [RED, BLUE], 7, cached=cached, clips=clips)
    assert [tuple(video.shape) for video in both] == [(7, 32, 32, 3), (7, 48, 16, 3)]
    assert close(both[1], roll(pipeline, [BLUE], 7, cached=cached, clips=clips[1:], seed=1)[0])


@pytest.mark.parametrize("cached", WAYS)
def test_memory_does_not_grow_with_the_length(pipeline, cached, request):
    """Elements of all tensors alive between two windows."""

    def live() -> int:
        gc.collect()
        return sum(x.untyped_storage().nbytes() for x in gc.get_objects() if type(x) is torch.Tensor)

    gc.freeze()  # what is there already need not be looked through
    request.addfinalizer(gc.unfreeze)
    windows = rollout(pipeline, [RED], 10**6, cached=cached, sampling=options(), **SIZE)
    sizes = [live() for i, _ in enumerate(islice(windows, 8)) if i in (2, 7)]
    assert sizes[0] == sizes[1]


# --- windows that are encoded anew ---


@pytest.mark.parametrize("condition", ["levels", "replacement", "reconstruction"])
def test_the_context_is_the_end_of_what_was_made_given_exactly(pipeline, monkeypatch, condition):
    asked, made = [], []
    sample = LatentVideoPipeline.sample

    def spy(self, requests, *more):
        asked.append(requests[0])
        made.append(sample(self, requests, *more)[0])
        return made[-1:]

    monkeypatch.setattr(LatentVideoPipeline, "sample", spy)
    video = roll(pipeline, [RED], 17, options(condition=condition), cached=False)[0]
    assert [request.seed for request in asked] == [window_seed(0, k) for k in range(3)]
    for window in (1, 2):
        end = 9 + 4 * (window - 1)
        (context,) = pipeline.encode([video[end - 5 : end]])
        assert asked[window].known.flatten().tolist() == [True, True, False]
        torch.testing.assert_close(asked[window].given[:, :2], context)
        torch.testing.assert_close(made[window][:, :2], context)
        shown = pipeline.decode(made[window : window + 1])[0][5:]
        assert torch.equal(shown, video[end : end + 4])


def test_a_model_without_given_frames_goes_on_by_reconstruction(plain):
    video = roll(plain, [RED], 13, options(2))[0]
    assert torch.equal(video, roll(plain, [RED], 13, options(2, condition="reconstruction"))[0])
    assert not close(video, roll(plain, [RED], 13, options(2, condition="replacement"))[0])


def test_the_defaults_follow_the_model(plain):
    plain.register_to_config(frames=17)
    assert [len(piece[0]) for piece in rollout(plain, [RED], 41, sampling=options(1, 1.0))] == [17, 12, 12]


# --- the key/value cache ---


@pytest.mark.parametrize(
    ("sampling", "shift"), [(options(3), {}), (options(3, 1.0), {"shift": 2.0, "base_tokens": 16})]
)
def test_the_cache_changes_nothing(pipeline, sampling, shift, monkeypatch):
    """Chunks against the cache equal those of full passes over all that was made before, given at noise level 0.

    Also where the noise levels depend on the number of tokens.
    """
    monkeypatch.setattr(pipeline, "scheduler", LatentVideoScheduler(**shift))
    asks = [Ask(RED, BLUE, (3, 8, 8), 5, None), Ask(BLUE, "", (3, 6, 4), 9, None)]
    chunks = list(islice(causal_latents(pipeline, asks, 2, 1, None, None, sampling), 4))
    past = list(chunks[0])
    for window, chunk in enumerate(chunks[1:], 1):
        requests = []
        for ask, before in zip(asks, past, strict=True):
            (c, f), (h, w) = before.shape[:2], ask.grid[1:]
            layout = Packed.of([(1, h // 2, w // 2)])
            noise = draw_noise([generator(window_seed(ask.seed, window), 0, "sample")], layout, 4 * c)
            start = torch.cat([before, unpatchify(noise, layout, 2)[0]], dim=1)
            known = torch.arange(f + 1)[:, None, None] < f
            words = {"prompt": ask.prompt, "negative_prompt": ask.negative_prompt, "grid": (f + 1, h, w)}
            requests.append(Request(**words, given=start, start=start, known=known))
        for new, before, full in zip(chunk, past, pipeline.sample(requests, sampling), strict=True):
            torch.testing.assert_close(full, torch.cat([before, new], dim=1), rtol=1e-4, atol=1e-4)
        past = [torch.cat(both, dim=1) for both in zip(past, chunk, strict=True)]


def test_guidance_within_an_interval_reads_its_branch_of_the_cache(pipeline):
    """Steps without guidance take the prompt's samples of the cache alone."""
    ask = [Ask(RED, BLUE, (3, 8, 8), 5, None)]
    partly = Sampling(steps=3, progress=False, guidance=Guidance(scale=3.0, interval=(0.5, 0.9)))
    never = Sampling(steps=3, progress=False, guidance=Guidance(scale=3.0, interval=(0.001, 0.002)))
    latents = [list(islice(causal_latents(pipeline, ask, 2, 1, 2, None, s), 3)) for s in (partly, never, options(3, 1))]
    for guided, unguided in zip(latents[1], latents[2], strict=True):
        torch.testing.assert_close(guided[0], unguided[0], rtol=1e-5, atol=1e-5)
    assert (latents[0][-1][0] - latents[2][-1][0]).abs().max() > 1e-2


def test_each_frame_is_computed_once_and_the_cache_is_bounded(pipeline, monkeypatch):
    caches, tokens = [], []
    remember, forward = LatentVideoPipeline.remember, VideoDiT.forward

    def watch(self, latents, requests, sampling, cache: KeyValueCache):
        remember(self, latents, requests, sampling, cache)
        caches.append(cache)

    def count(self, z, *more, cache=None, **rest):
        tokens.append((len(z), cache.records))
        return forward(self, z, *more, cache=cache, **rest)

    monkeypatch.setattr(LatentVideoPipeline, "remember", watch)
    monkeypatch.setattr(VideoDiT, "forward", count)
    for _ in rollout(pipeline, [RED], 29, sampling=options(), **SIZE):
        if caches:
            assert caches[-1].lengths == [2 * 16, 2 * 16]  # two latent frames of each branch
    frame = 2 * 16
    assert [n for n, _ in tokens] == [3 * frame, *(n for k in range(5) for n in ((1 if k else 3) * frame, frame))]
    assert sum(n for n, records in tokens if records) == 7 * frame  # all but the last latent frame


def test_the_beginning_of_a_clip_is_decoded_but_not_shown(pipeline):
    """What the stream of the decoder shows equals one pass over the context's and the new latents."""
    old = clip(9, 3)
    (past,) = pipeline.encode([old[-5:]])
    ask = [Ask(RED, "", (3, 8, 8), 0, old[-5:])]
    latents = [past, *(z[0] for z in islice(causal_latents(pipeline, ask, 3, 1, 2, [past], options()), 3))]
    (whole,) = pipeline.decode([torch.cat(latents, dim=1)])
    assert close(roll(pipeline, [RED], 12, clips=[old])[0], whole[5:])


# --- bad input ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_frames": 0}, "0 frames of 1 prompt:"),
        ({"prompts": []}, "frames of 0 prompts"),
        ({"window": 10}, "10 frames: this VAE takes"),
        ({"context": 4}, "4 frames: this VAE takes"),
        ({"window": 5}, "a window of 5 frames must be longer than its context of 5: ask for a window of 9"),
        ({"window": 5, "context": 9}, "must be longer than its context"),
        ({"height": 30}, "30 x 32 pixels: this model makes multiples of 8"),
        ({"clips": [clip(1, 0)]}, "clip 0 has 1 frame, and 5 are needed"),
        ({"clips": [clip(5, 0)] * 2}, "2 clips for 1 prompt:"),
        ({"clips": [clip(5, 0, 30, 32)]}, "30 x 32 pixels"),
    ],
)
def test_bad_requests_are_said_before_anything_is_made(pipeline, change, message):
    with pytest.raises(UserError, match=message):
        rollout(pipeline, **{"prompts": [RED], "num_frames": 9, **SIZE, **change})


def test_what_a_model_cannot_do_is_said(plain, pipeline):
    with pytest.raises(UserError, match="needs a model of causal attention .*is full"):
        rollout(plain, [RED], 9, cached=True, **SIZE)
    with pytest.raises(UserError, match="trained with given frames, and condition levels"):
        rollout(pipeline, [RED], 9, cached=True, sampling=options(condition="replacement"), **SIZE)
    plain.register_to_config(given=("plain", "first", "ends"))
    with pytest.raises(UserError, match="trained with ends, first, plain frames given, never with the first 2"):
        rollout(plain, [RED], 9, **SIZE)
    assert len(roll(plain, [RED], 12, window=9, context=1)[0]) == 12
    plain.register_to_config(frames=1)
    with pytest.raises(UserError, match="a window of 1 frame must be longer"):
        rollout(plain, [RED], 9)
