"""Frame rates: as a condition of the modulation, and in rotary positions that are seconds."""

import json
import math

import pytest
import torch
from test_transformer import GRIDS, SMALL, WORDS, assert_close, disturbed, samples

from latentvid.models.layers import rate_embedding, time_positions
from latentvid.models.transformer import VideoDiT
from latentvid.packing import Packed

RATES = [12.0, 0.0, 24.0, 48.0]
ON = {"condition": {"fps_condition": True}, "seconds": {"rope_fps": 24.0, "temporal_stride": 4}}
ON["both"] = ON["condition"] | ON["seconds"]


def make(**options) -> VideoDiT:
    torch.manual_seed(0)
    return disturbed(VideoDiT(**SMALL, **options))


def forward(model, inputs, rates, grids=GRIDS, words=WORDS):
    tokens, timestep, text = (torch.cat(part) for part in zip(*inputs, strict=True))
    fps = None if rates is None else torch.tensor(rates)
    return model(tokens, timestep, text, Packed.of(grids), Packed.of_lengths(words), fps=fps).split(
        Packed.of(grids).lengths
    )


def test_a_model_of_neither_option_has_no_weights_for_rates_and_reads_none():
    model = make()
    assert not any(name.startswith("fps") for name in model.state_dict())
    for got, want in zip(forward(model, samples(), RATES), forward(model, samples(), None), strict=True):
        assert torch.equal(got, want)


def test_a_new_condition_changes_nothing_at_first():
    """So that training may go on from a model that knew no rates."""
    old, new = make(), VideoDiT(**SMALL, fps_condition=True)
    missing, unexpected = new.load_state_dict(old.state_dict(), strict=False)
    assert missing and all(name.startswith("fps_in.") for name in missing) and not unexpected
    for got, want in zip(forward(new, samples(), RATES), forward(old, samples(), None), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("kind", ON)
def test_a_sample_sees_its_own_rate_alone(kind):
    model = make(**ON[kind])
    before = forward(model, samples(), RATES)
    for i in range(4):
        changed = forward(model, samples(), [30.0 if j == i else fps for j, fps in enumerate(RATES)])
        for j in range(4):
            picture = kind == "seconds" and GRIDS[j][0] == 1  # its one frame is at time 0 at any rate
            if i == j and not picture:
                assert not torch.allclose(before[j], changed[j], atol=1e-4)
            else:
                assert torch.equal(before[j], changed[j])


@pytest.mark.parametrize("kind", ON)
@pytest.mark.parametrize("attention", ["full", "factorised", "causal"])
def test_packed_equals_each_sample_alone(kind, attention):
    model = make(**ON[kind], attention=attention)
    packed = forward(model, samples(), RATES)
    for i, (sample, grid, words, fps) in enumerate(zip(samples(), GRIDS, WORDS, RATES, strict=True)):
        assert_close(packed[i], forward(model, [sample], [fps], [grid], [words])[0])


@pytest.mark.parametrize("kind", ON)
def test_no_rates_are_unknown_ones(kind):
    model = make(**ON[kind])
    for got, want in zip(forward(model, samples(), None), forward(model, samples(), [0.0] * 4), strict=True):
        assert torch.equal(got, want)
    reference = forward(model, samples(), [24.0] * 4)  # that an unknown one is taken for in positions alone
    assert all(map(torch.equal, reference, forward(model, samples(), None))) == (kind == "seconds")


def test_every_weight_of_the_condition_learns_whether_rates_are_known_or_not():
    """Else DistributedDataParallel would wait for the gradients of those that do not."""
    model = make(**ON["condition"])
    for rates in (RATES, [0.0] * 4):
        model.zero_grad()
        torch.cat(forward(model, samples(), rates)).square().sum().backward()
        assert all(p.grad is not None for p in model.fps_in.parameters())
        assert model.fps_in.fc2.bias.grad.any() and model.fps_in.fc1.bias.grad.any()


def test_features_of_rates():
    rates = torch.tensor([1e-3, 1.0, 12.0, 23.976, 24.0, 1000.0, 0.0])
    found = rate_embedding(rates, 16)
    for fps, row in zip(rates.tolist()[:-1], found, strict=False):
        turns = [math.log(fps) / 32 ** (i / 8) for i in range(8)]  # periods of a factor e to one of e^32, nearly
        want = [math.cos(2 * math.pi * x) for x in turns] + [math.sin(2 * math.pi * x) for x in turns]
        torch.testing.assert_close(row, torch.tensor(want), rtol=0, atol=2e-5)
    assert not found[-1].any()
    distance = torch.cdist(found, found)
    assert (
        distance[3, 4] < 0.05 and (distance + 9 * torch.eye(7))[[0, 1, 2, 4, 5, 6]][:, [0, 1, 2, 4, 5, 6]].min() > 0.5
    )


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
@pytest.mark.parametrize("fps", [12.0, 24.0, 29.97])
def test_a_latent_frame_is_at_the_mean_time_of_its_frames(stride, fps):
    """Times of the frames that the VAE joins, by their numbers: the first alone, then `stride` at a time."""
    groups = [[0], *([1 + k * stride + i for i in range(stride)] for k in range(4))]
    seconds = torch.tensor([sum(group) / len(group) / fps for group in groups])
    found = time_positions(torch.arange(5), stride, torch.full((5,), 24.0 / fps))
    torch.testing.assert_close(found, seconds * 24.0 / stride)  # in latent frames of a clip of 24


def test_clips_of_two_rates_agree_in_time():
    """Frames 0, 2, 4 ... of a clip have the positions of the same clip at half its rate."""
    model = make(rope_fps=24.0)
    layout = Packed.of([(5, 2, 3), (3, 2, 3)])
    both = model._positions(layout.position, layout, torch.tensor([24.0, 12.0])).split(layout.lengths)
    assert torch.equal(both[0].unflatten(0, (5, 6))[::2], both[1].unflatten(0, (3, 6)))
    assert torch.equal(both[0], layout.position[:30].float())  # one at the reference rate has its frame numbers


def test_at_the_reference_rate_seconds_are_frame_numbers():
    numbers, seconds = make(), make(rope_fps=24.0)
    for got, want in zip(forward(seconds, samples(), [24.0] * 4), forward(numbers, samples(), None), strict=True):
        assert torch.equal(got, want)


def test_saved_equals_loaded_and_older_folders_have_neither(tmp_path):
    model = make(**ON["both"])
    model.save_pretrained(tmp_path / "new")
    loaded = VideoDiT.from_pretrained(tmp_path / "new")
    assert (loaded.config.fps_condition, loaded.config.rope_fps, loaded.config.temporal_stride) == (True, 24.0, 4)
    for got, want in zip(forward(loaded, samples(), RATES), forward(model, samples(), RATES), strict=True):
        assert torch.equal(got, want)
    plain = make()
    plain.save_pretrained(tmp_path / "old")
    file = tmp_path / "old" / "config.json"
    config = json.loads(file.read_text())
    for key in ("fps_condition", "rope_fps", "temporal_stride"):
        del config[key]
    file.write_text(json.dumps(config))
    loaded = VideoDiT.from_pretrained(tmp_path / "old")
    for got, want in zip(forward(loaded, samples(), RATES), forward(plain, samples(), None), strict=True):
        assert torch.equal(got, want)


def test_rates_must_be_one_a_sample():
    with pytest.raises(ValueError, match="fps has shape .3,., the layout has 4 samples"):
        forward(make(), samples(), RATES[:3])
