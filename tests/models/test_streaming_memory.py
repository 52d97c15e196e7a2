"""Memory of streams: it does not grow with the frames, and chunks follow what is free."""

import copy

import pytest
import torch
from small_vae import SMALL, clip
from streams import latents, model, pixels, with_cut

from latentvid.errors import UserError
from latentvid.models import budget
from latentvid.models.autoencoder import CausalVideoAutoencoder
from latentvid.models.budget import Cut, choose_cut, live_bytes
from latentvid.models.streaming import (
    EncodeStream,
    decode_side,
    encode_side,
    run,
)


@pytest.mark.parametrize("side", [encode_side, decode_side])
def test_live_memory_does_not_grow_with_the_frames(side):
    vae = model("mixed")
    side, make = side(vae), pixels if side is encode_side else latents
    peaks, outputs = [], []
    for f in (5, 25):
        x = make(vae, f, 4, 4)
        with budget.Lifetimes(torch.device("cpu")) as count, torch.no_grad():
            out = with_cut(Cut(3, 2, 1, 4, 4), run, side, x)
        assert count.live == out.nbytes  # the cache is gone
        peaks.append(count.peak)
        outputs.append(out.nbytes)
    assert peaks[1] - peaks[0] <= outputs[1] - outputs[0]


def test_the_cache_keeps_only_the_frames_that_it_needs_and_no_graph():
    stream = EncodeStream(copy.deepcopy(model("mixed")).requires_grad_(True))
    with torch.no_grad():
        stream.push(clip(17))
    history = stream.tiles[0].cache.history.values()
    assert history
    for past in history:
        assert past.untyped_storage().nbytes() == past.nbytes and past.shape[2] <= 2 and not past.requires_grad


def test_the_estimate_counts_what_lives_together():
    """Of x -> conv -> conv: input, output and the copies that the convolution may make."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (torch.nn.Conv3d(64, 64, 3, padding=1, bias=False) for _ in range(2))

        def forward(self, x, cache):
            x = self.a(x)
            return self.b(x)

    side = budget.Side("encode", Net(), 64, 64, 1, 1, 1, 1)
    unit, weight = 4 * 64 * 8 * 64 * 64, 4 * 27 * 64**2
    found = live_bytes(side, Cut(8, 0, 1, 64, 64))
    assert found == (5 * unit + weight, 0)  # input, a's and b's output; copies of b's input and output


@pytest.mark.parametrize("frames", [21, None])
@pytest.mark.parametrize("side", [encode_side, decode_side])
def test_the_cut_follows_the_budget(side, frames):
    side = side(copy.deepcopy(model("8 frames")).bfloat16())
    large = choose_cut(side, 2, frames, 96, 64, 2**40)
    assert (large.h, large.w) == (96, 64) and large.later == large.first - 1
    needed = [budget._needed(side, large, 2, 96, 64, frames is None)]
    seen = {large}
    while True:
        try:
            cut = choose_cut(side, 2, frames, 96, 64, needed[-1] - 1)
        except UserError as error:
            assert "takes at least" in str(error) and "give a larger budget" in str(error)
            break
        assert cut not in seen
        seen.add(cut)
        needed.append(budget._needed(side, cut, 2, 96, 64, frames is None))
        assert needed[-1] < needed[-2]
        whole = (cut.h, cut.w) == (96, 64)
        assert whole or (cut.clips == cut.later == 1)  # tiles come last
    assert len(needed) > 3
    # as long as a chunk is, a longer clip is cut alike
    if frames:
        assert choose_cut(side, 2, 1001, 96, 64, 2**40) == large


def test_the_default_budget_is_a_share_of_what_is_free_beside_the_output(monkeypatch):
    side = encode_side(model("mixed"))
    monkeypatch.setattr(budget, "free_bytes", lambda device: 10_000)
    with pytest.raises(UserError, match="to encode 64 x 64 pixels takes at least .* MB are allowed"):
        run(side, clip(5, 64, 64))


def test_limits_of_control_groups(tmp_path):
    """The smallest rest over the groups that hold the process; pages of files count as free."""
    stat = "anon 5\ninactive_file 100\nactive_file 20\ntotal_inactive_file 300\ntotal_active_file 0\n"
    (tmp_path / "self").write_text("4:memory:/job/step\n9:cpu:/job\n0::/job\n")
    groups = {
        "memory": ("memory.limit_in_bytes", "9223372036854771712", "memory.usage_in_bytes", "7"),
        "memory/job/step": ("memory.limit_in_bytes", "10000", "memory.usage_in_bytes", "4000"),
        "job": ("memory.max", "5000", "memory.current", "1000"),
        "": ("memory.max", "max", "memory.current", "1"),
    }
    for folder, (limit, most, usage, used) in groups.items():
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / limit).write_text(most + "\n")
        (tmp_path / folder / usage).write_text(used + "\n")
        (tmp_path / folder / "memory.stat").write_text(stat)
    assert budget._cgroup_free(tmp_path, tmp_path / "self") == [10000 - 4000 + 300, 5000 - 1000 + 120]
    assert budget._cgroup_free(tmp_path, tmp_path / "none") == []
    assert 0 < budget.free_bytes(torch.device("cpu")) < 2**50


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_estimate_bounds_the_peak_on_a_gpu(dtype):
    vae = CausalVideoAutoencoder(**SMALL | dict(widths=(64, 64, 128))).to("cuda", dtype)
    for side, make in ((encode_side(vae), pixels), (decode_side(vae), latents)):
        x = make(vae, 17, 32, 32).to("cuda", dtype)
        estimate = live_bytes(side, choose_cut(side, 1, 17, 32, 32, None)).peak
        with torch.no_grad():
            run(side, x)
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            out = run(side, x)
        peak = torch.cuda.max_memory_allocated() - before - out.nbytes
        assert peak <= estimate <= 3 * peak
