"""The tasks: what is given is kept, lengths are as asked, and a clip does not depend on what it is made with."""

from dataclasses import replace

import pytest
import torch
from einops import repeat

from latentvid.diffusion.guidance import Guidance
from latentvid.errors import UserError
from latentvid.models.conditions import known_latents
from latentvid.pipelines import edits, local, tasks
from latentvid.pipelines.hierarchy import nuwa_xl
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.packs import packs, tokens_of
from latentvid.pipelines.sampling import Sampling

FAST = Sampling(steps=2, progress=False)
RED, BLUE = "a red 7 moves up", "a blue three"


@pytest.fixture(scope="module")
def pipeline(given_pipeline) -> LatentVideoPipeline:
    return load_pipeline(given_pipeline, "cpu")


@pytest.fixture(scope="module")
def plain(tiny_pipeline) -> LatentVideoPipeline:
    """A model that was trained without given frames."""
    return load_pipeline(tiny_pipeline, "cpu")


@pytest.fixture
def sampled(monkeypatch) -> list:
    """All latents that the pipelines sample, pack by pack."""
    found = []
    sample = LatentVideoPipeline.sample

    def spy(self, requests, sampling=None, *more):
        found.append(sample(self, requests, sampling, *more))
        return found[-1]

    monkeypatch.setattr(LatentVideoPipeline, "sample", spy)
    return found


def clip(frames: int, height: int = 16, width: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (frames, height, width, 3), dtype=torch.uint8, generator=generator(seed))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal up to one grey level."""
    return a.shape == b.shape and (a.int() - b.int()).abs().max() <= 1


@pytest.mark.parametrize("condition", [None, "levels", "replacement", "reconstruction"])
def test_the_first_latent_is_the_pictures(condition, pipeline, sampled):
    picture = clip(1)[0]
    sampling = Sampling(steps=2, progress=False, condition=condition)
    (made,) = tasks.image_to_video(pipeline, [picture], [RED], 9, sampling=sampling)
    (want,) = pipeline.encode([picture[None]])
    assert made.shape == (9, 16, 24, 3) and made.dtype == torch.uint8
    torch.testing.assert_close(sampled[0][0][:, :1], want, rtol=0, atol=1e-6)
    assert close(made[:1], pipeline.decode([want])[0])
    assert not close(made, tasks.image_to_video(pipeline, [clip(1, seed=1)[0]], [RED], 9, sampling=sampling)[0])


def test_clips_of_any_sizes_go_together(pipeline):
    pictures = [clip(1)[0], clip(1, 32, 16)[0]]
    both = tasks.image_to_video(pipeline, pictures, [RED, BLUE], seed=5, sampling=FAST)
    for i in (0, 1):
        (alone,) = tasks.image_to_video(pipeline, pictures[i : i + 1], [(RED, BLUE)[i]], seed=5 + i, sampling=FAST)
        assert len(alone) == 5 and close(alone, both[i])


def test_one_frame_leaves_nothing_to_make(pipeline):
    with pytest.raises(UserError, match="nothing is left to sample"):
        tasks.image_to_video(pipeline, [clip(1)[0]], [RED], 1, sampling=FAST)


@pytest.mark.parametrize("between", [1, 3, 4, 5, 8])
def test_both_ends_are_kept_and_the_number_of_frames_is_as_asked(between, pipeline, sampled):
    first, last = clip(1)[0], clip(1, seed=1)[0]
    (made,) = tasks.interpolate(pipeline, [first], [last], [RED], between, sampling=FAST)
    assert made.shape == (between + 2, 16, 24, 3)
    (z,) = sampled[0]
    head, tail = pipeline.encode([first[None], repeat(last, "h w c -> f h w c", f=5)])
    assert z.shape[1] == 2 + -(-between // 4)
    assert torch.equal(z[:, :1], head) and torch.equal(z[:, -1:], tail[:, 1:])
    frames, alone = pipeline.decode([z, pipeline.encode([last[None]])[0]])
    assert close(made[0], frames[0])
    assert close(made[-1:], alone)  # as the VAE shows it by itself
    if between % 4 == 0:
        assert close(made[:-1], frames[:-4])


def test_frames_are_the_nearest_in_time(pipeline):
    four, one = (
        tasks.interpolate(pipeline, [clip(1)[0]], [clip(1, seed=1)[0]], [RED], n, sampling=FAST)[0] for n in (4, 1)
    )
    assert any(close(one[1], four[i]) for i in (2, 3)) and close(one[2], four[5])


@pytest.mark.parametrize("factor", [2, 5])
def test_a_clip_at_a_higher_rate_has_its_pairs_joined_once(factor, pipeline):
    slow = clip(4)
    whole = tasks.raise_rate(pipeline, slow, factor, RED, seed=3, sampling=FAST)
    assert len(whole) == 3 * factor + 1
    tokens = tokens_of(pipeline, pipeline.latent_grid(9, 16, 24))
    assert close(
        whole, tasks.raise_rate(pipeline, slow, factor, RED, seed=3, sampling=FAST, tokens_per_pack=2 * tokens)
    )
    for i in range(3):
        (part,) = tasks.interpolate(
            pipeline, slow[i : i + 1], slow[i + 1 : i + 2], [RED], factor - 1, seed=3 + i, sampling=FAST
        )
        assert close(whole[i * factor : (i + 1) * factor], part[:-1])
    assert close(whole[-1], part[-1])


@pytest.mark.parametrize("condition", ["levels", "replacement", "reconstruction"])
@pytest.mark.parametrize("frames", [9, 6, 1])
def test_known_pixels_stay_and_masked_ones_change(condition, frames, pipeline):
    source, mask = clip(frames), torch.zeros(frames, 16, 24, dtype=torch.bool)
    mask[:, 3:9, 10:20] = True
    sampling = Sampling(steps=2, progress=False, condition=condition)
    (made,) = edits.inpaint(pipeline, [source], [mask], [RED], sampling=sampling)
    assert made.shape == source.shape and torch.equal(made[~mask], source[~mask])
    assert (made[mask] != source[mask]).float().mean() > 0.9
    (same,) = edits.inpaint(pipeline, [source], [mask[0].byte() * 200], [RED], sampling=sampling)  # a picture, in grey
    assert close(same, made)


def test_known_latents_are_those_without_a_masked_pixel(pipeline, sampled):
    source, mask = clip(9, 32, 32), torch.zeros(9, 32, 32, dtype=torch.bool)
    mask[6, 17, 2] = True  # one pixel of the third latent frame
    edits.inpaint(
        pipeline, [source], [mask], [RED], sampling=Sampling(steps=2, progress=False, condition="replacement")
    )
    (want,) = pipeline.encode([source])
    changed = (sampled[0][0] - want).abs().amax(0) > 1e-5  # [f,h,w]
    assert changed.nonzero().tolist() == [[2, y, x] for y in (4, 5) for x in (0, 1)]  # its token of 2 x 2 latents
    known = known_latents(~mask, 4, 4)
    assert (~known).nonzero().tolist() == [[2, 4, 0]]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(16, 16), r"mask 0 is 16 x 16, its clip 5 x 16 x 24 \(frames"),
        (torch.ones(4, 16, 24), "mask 0 is 4 x 16 x 24"),
        (torch.full((16, 24), 100, dtype=torch.uint8), "black all over"),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask, message, pipeline):
    with pytest.raises(UserError, match=message):
        edits.inpaint(pipeline, [clip(5)], [mask], [RED], sampling=FAST)


def test_all_of_a_clip_may_be_painted(pipeline):
    (made,) = edits.inpaint(pipeline, [clip(5)], [torch.ones(16, 24, dtype=torch.bool)], [RED], sampling=FAST)
    assert close(made, pipeline(RED, num_frames=5, height=16, width=24, sampling=FAST, output_type="uint8").frames[0])


def test_inverted_noise_leads_back_to_the_clip(pipeline):
    """With the same prompt and no guidance an edit changes little."""
    sampling = Sampling(steps=8, progress=False, guidance=Guidance(scale=1.0))
    sources = [clip(6), clip(1, 32, 16)]
    want = pipeline.decode(pipeline.encode([local.whole_groups(x, 4) for x in sources]))
    made = edits.edit(pipeline, sources, [RED, BLUE], [RED, BLUE], strength=0.2, sampling=sampling)
    for new, old, source in zip(made, want, sources, strict=True):
        assert new.shape == source.shape and (new.int() - old[: len(new)].int()).abs().float().mean() < 2
    (other,) = edits.edit(pipeline, sources[:1], [RED], [BLUE], strength=0.9, sampling=sampling)
    assert not close(other, made[0])


def test_the_noise_is_found_without_guidance(pipeline, monkeypatch):
    asked = []
    monkeypatch.setattr(
        LatentVideoPipeline,
        "invert",
        lambda self, z, requests, sampling, iterations: asked.append((requests, sampling)) or z,
    )
    edits.edit(pipeline, [clip(5)], [RED], [BLUE], negative_prompt="dark", sampling=FAST)
    ((requests, sampling),) = asked
    assert (requests[0].prompt, sampling.guidance.scale, sampling.steps) == (RED, 1.0, FAST.steps)


@pytest.mark.parametrize("own", [None, (0.2, 0.5)])
@pytest.mark.parametrize(("method", "strength"), [("inversion", 0.95), ("sdedit", 0.7)])
def test_an_edit_begins_at_its_methods_level_and_guides_an_inversion_below_another(
    method, strength, own, pipeline, monkeypatch
):
    asked = []
    monkeypatch.setattr(LatentVideoPipeline, "invert", lambda self, z, *_, iterations: z)
    monkeypatch.setattr(
        LatentVideoPipeline, "sample", lambda self, r, sampling: asked.append((r, sampling)) or [r[0].start]
    )
    sampling = replace(FAST, guidance=Guidance(scale=2.0, interval=own))
    edits.edit(pipeline, [clip(5)], [RED], [BLUE], method, negative_prompt="dark", seed=4, sampling=sampling)
    ((requests, sampling),) = asked
    assert (requests[0].prompt, requests[0].negative_prompt, requests[0].seed) == (BLUE, "dark", 4)
    assert requests[0].level == strength
    assert sampling.guidance == Guidance(scale=2.0, interval=own or ((0.0, 0.7) if method == "inversion" else None))


def test_sdedit_keeps_more_of_the_clip_the_weaker_it_is(pipeline):
    source = clip(6)
    want = pipeline.decode(pipeline.encode([local.whole_groups(source, 4)]))[0][:6].int()

    def change(strength: float) -> float:
        (made,) = edits.edit(pipeline, [source], [""], [RED], "sdedit", strength, sampling=FAST)
        assert made.shape == source.shape
        return (made.int() - want).abs().float().mean().item()

    assert change(0.01) < 0.2 * change(0.3) < 0.2 * change(1.0)


def test_an_edit_does_not_depend_on_what_it_is_made_with(pipeline):
    sources = [clip(5), clip(5, 32, 16, seed=1)]
    for method in ("sdedit", "inversion"):
        both = edits.edit(pipeline, sources, [RED, RED], [BLUE, RED], method, 0.3, seed=2, sampling=FAST)
        (alone,) = edits.edit(pipeline, sources[1:], [RED], [RED], method, 0.3, seed=3, sampling=FAST)
        assert close(alone, both[1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda p: edits.edit(p, [clip(5)], [RED], [RED], "swap"),
            "method 'swap': one of inversion, sdedit, token",
        ),
        (lambda p: edits.edit(p, [clip(5)], [RED], [RED], strength=0.0), "strength 0.0"),
        (lambda p: edits.edit(p, [clip(5, 20)], [RED], [RED], sampling=FAST), "20 x 24 pixels: .* multiples of 8"),
        (lambda p: tasks.interpolate(p, [clip(1)[0]], [clip(1, 24)[0]], [RED], 4), "first .* 16 x 24 .* last 24 x 24"),
        (lambda p: tasks.interpolate(p, [clip(1)[0]], [clip(1)[0]], [RED], 0), "between=0: must be a whole number"),
        (lambda p: tasks.raise_rate(p, clip(1), 2), "1 frame at 2 times"),
        (lambda p: tasks.raise_rate(p, clip(3), 1), "3 frames at 1 times"),
    ],
)
def test_bad_requests_are_said(call, message, pipeline):
    with pytest.raises(UserError, match=message):
        call(pipeline)
    with pytest.raises(ValueError, match="1 images, 2 prompts"):
        tasks.image_to_video(pipeline, [clip(1)[0]], [RED, BLUE])


def test_models_trained_without_given_frames_do_it_without_levels(plain, sampled):
    picture = clip(1)[0]
    with pytest.raises(UserError, match="trained without given frames"):
        tasks.image_to_video(plain, [picture], [RED], sampling=Sampling(condition="levels"))
    tasks.image_to_video(plain, [picture], [RED], sampling=FAST)
    torch.testing.assert_close(sampled[0][0][:, :1], plain.encode([picture[None]])[0], rtol=0, atol=1e-6)


def test_packs_keep_order_and_budget():
    assert packs([4, 4, 4, 9, 1, 2], 8) == [[0, 1], [2], [3], [4, 5]]
    assert packs([5, 5], 5) == [[0], [1]] and packs([], 5) == []


def test_a_model_that_never_saw_a_last_frame_given_is_not_interpolated_with(pipeline):
    """Neither at once nor after the keyframes of a long clip were made."""
    trained = pipeline.config.given
    pipeline.register_to_config(given=["plain", "first"])
    try:
        for call in (
            lambda: tasks.interpolate(pipeline, [clip(1)[0]], [clip(1)[0]], [RED], 4),
            lambda: nuwa_xl(pipeline, RED, 40),
        ):
            with pytest.raises(UserError, match="trained with first, plain frames given, never with the last one"):
                call()
        sampling = replace(FAST, condition="reconstruction")
        assert len(tasks.interpolate(pipeline, [clip(1)[0]], [clip(1)[0]], [RED], 4, sampling=sampling)[0]) == 6
    finally:
        pipeline.register_to_config(given=trained)


@pytest.mark.parametrize("folder", ["given_pipeline", "tiny_pipeline"])
@pytest.mark.parametrize("between", [3, 4])
def test_both_pictures_are_shown_whatever_was_made_between_them(folder, between, request):
    """Also by a model that was not trained with given frames."""
    pipeline = LatentVideoPipeline.from_pretrained(request.getfixturevalue(folder))
    first, last = clip(1)[0], clip(1, seed=1)[0]
    sampling = replace(FAST, precision=torch.float32)
    (made,) = tasks.interpolate(pipeline, [first], [last], [RED], between, sampling=sampling)
    for shown, given in ((made[0], first), (made[-1], last)):
        (want,) = pipeline.decode(pipeline.encode([given[None]], torch.float32), torch.float32)
        assert (shown.int() - want[0].int()).abs().max() <= 1
    assert len(made) == between + 2
