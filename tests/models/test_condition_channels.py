"""Further input channels of VideoDiT: what is known of a clip, as a mask and latents; packed equals alone."""

import itertools
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from latentvid.models.conditions import Conditions, known_channels, known_latents, low_channels
from latentvid.models.flops import dit_flops
from latentvid.models.key_value_cache import KeyValueCache
from latentvid.models.saved import load_component
from latentvid.models.transformer import VideoDiT
from latentvid.packing import Packed, Reference, Shape, patchify, positions_of, unpatchify

SMALL = dict(latent_channels=3, patch=2, width=24, depth=2, heads=2, text_width=10)
GRIDS, WORDS = [(3, 2, 2), (1, 3, 2), (2, 1, 4)], [4, 1, 3]
CHANNELS = (1 + 3) * 2**2


@pytest.fixture
def model() -> VideoDiT:
    torch.manual_seed(1)
    model = VideoDiT(**SMALL, condition_channels="mask_and_latents")
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def inputs(grids=GRIDS, words=WORDS) -> dict:
    rand = torch.Generator().manual_seed(2)
    layout = Packed.of(grids)
    return {
        "tokens": torch.randn(layout.tokens, 12, generator=rand),
        "timestep": torch.rand(layout.frames, generator=rand),
        "text": torch.randn(sum(words), 10, generator=rand),
        "layout": layout,
        "text_layout": Packed.of_lengths(words),
        "conditions": Conditions(channels=torch.randn(layout.tokens, CHANNELS, generator=rand)),
    }


def test_packed_equals_each_sample_alone(model):
    given, alone = inputs(), []
    layout = given["layout"]
    frames, words = [f for f, _, _ in GRIDS], WORDS
    parts = zip(
        *(given[name].split(n) for name, n in (("tokens", layout.lengths), ("timestep", frames), ("text", words))),
        given["conditions"].channels.split(layout.lengths),
        GRIDS,
        WORDS,
        strict=True,
    )
    for tokens, timestep, text, channels, grid, n in parts:
        at = Packed.of([grid]), Packed.of_lengths([n])
        alone.append(model(tokens, timestep, text, *at, conditions=Conditions(channels=channels)))
    packed = model(**given)
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-5, atol=1e-5)
    blank = Conditions(channels=torch.zeros_like(given["conditions"].channels))
    assert (model(**given | {"conditions": blank}) - packed).abs().amax(1).min() > 1e-4


def test_saved_loaded_and_counted(model, tmp_path):
    given = inputs()
    model.save_pretrained(tmp_path)
    loaded = load_component(VideoDiT, tmp_path)
    assert loaded.channels == 4 and torch.equal(loaded(**given), model(**given))
    counts = []
    for kind in ("none", "mask_and_latents", "latents"):
        network = VideoDiT(**SMALL, condition_channels=kind)
        with FlopCounterMode(display=False) as counter:
            network(**given | ({"conditions": None} if kind == "none" else {}))
        counts.append(counter.get_total_flops() - dit_flops(network.config, GRIDS, WORDS))
    assert counts[0] == counts[1] == counts[2]


def test_what_does_not_fit_is_refused(model):
    given = inputs()
    with pytest.raises(ValueError, match="the model takes 16 features of further channels a token, got 0"):
        model(**given | {"conditions": None})
    with pytest.raises(ValueError, match="the model takes 0 features of further channels a token, got 16"):
        VideoDiT(**SMALL)(**given)
    with pytest.raises(ValueError, match="condition_channels 'mask': one of none, mask_and_latents, latents"):
        VideoDiT(**SMALL, condition_channels="mask")
    causal = VideoDiT(**SMALL, condition_channels="mask_and_latents", attention="causal")
    with pytest.raises(ValueError, match="a cache of past frames is of models that are told of them by noise levels"):
        causal(**given, cache=KeyValueCache())


def test_channels_are_the_mask_and_the_latents_where_it_is_one():
    torch.manual_seed(0)
    latents = [torch.randn(3, 2, 4, 6), torch.randn(3, 1, 2, 2)]
    known = [torch.rand(z.shape[1:]) < 0.5 for z in latents]
    clean, grids = patchify(latents, 2)
    found = known_channels(clean, patchify([mask[None] for mask in known], 2)[0])
    for made, z, mask in zip(unpatchify(found, Packed.of(grids), 2), latents, known, strict=True):
        assert torch.equal(made[0], mask.float())
        assert torch.equal(made[1:], torch.where(mask, z, torch.zeros(())))


def test_a_smaller_clip_lies_where_its_tokens_would():
    """A latent that holds the places of an aligned reference's tokens gives, resized, the places of the clip's own, as
    far as there are neighbours on both sides; one of the clip's size is itself."""
    for low, grid in (((2, 3, 4), (3, 6, 8)), ((3, 2, 3), (3, 5, 7)), ((1, 4, 4), (1, 4, 4)), ((4, 2, 2), (4, 6, 4))):
        own, beside = math.prod(grid), Reference(low, "aligned")
        places = torch.from_numpy(positions_of(Shape(grid, (beside,))).copy()).float()
        latent = places[own:].T.reshape(3, *low)
        found = low_channels(latent, torch.tensor(0.25), grid)
        least, most = latent.flatten(1).amin(1)[:, None], latent.flatten(1).amax(1)[:, None]
        want = torch.minimum(torch.maximum(places[:own].T, least), most).reshape(3, *grid)
        torch.testing.assert_close(found[1:], want, rtol=0, atol=1e-5)
        assert found[0].eq(0.75).all()
    same = torch.randn(3, 2, 4, 6)
    assert torch.equal(low_channels(same, torch.tensor(0.0), (2, 4, 6))[1:], same)


@pytest.mark.parametrize("strides", [(4, 8), (2, 4), (1, 2)])
def test_a_latent_position_is_known_where_all_its_pixels_are(strides):
    """Against a loop over the pixels: the first latent frame stands for one frame, each of the others for a stride."""
    torch.manual_seed(0)
    t, s = strides
    keep = torch.rand(1 + 2 * t, 2 * s, 3 * s) < 0.995
    keep[0, :s] = True
    found = known_latents(keep, t, s)
    assert found.shape == (3, 2, 3) and found.any() and not found.all()
    for i, j, k in itertools.product(range(3), range(2), range(3)):
        frames = [0] if i == 0 else range(1 + (i - 1) * t, 1 + i * t)
        pixels = itertools.product(frames, range(j * s, (j + 1) * s), range(k * s, (k + 1) * s))
        assert bool(found[i, j, k]) == all(bool(keep[at]) for at in pixels)
