"""Several processes that share each pack do what one does: pieces, trades, the model, the task, and a whole run."""

import socket
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from comparing import assert_measured_alike, difference, losses
from diffusers import CogVideoXTransformer3DModel, MochiTransformer3DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from launching import ROOT, launch
from open_models import lively
from torch import Tensor, nn

from latentvid.config.parsing import save_config
from latentvid.config.schema import DitConfig
from latentvid.data.plan.plan import Draw, Plan
from latentvid.diffusion.objective import loss_per_sample
from latentvid.errors import UserError
from latentvid.models.open import OpenBackbone, packed
from latentvid.models.transformer import VideoDiT
from latentvid.packing import Packed, spans
from latentvid.sequence import SequenceGroup, make_sequence_group, makers
from latentvid.training.feed.loader import iterate_steps
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train

WORLD = 4
SMALL = dict(latent_channels=2, patch=2, width=72, depth=2, heads=12, text_width=10)  # 2, 3 or 4 processes share heads
OPEN_SIZES = dict(num_attention_heads=4, attention_head_dim=16, num_layers=2, in_channels=2, text_embed_dim=16)
JOINT = {  # text of their samples is on the process where these begin
    "cogvideox": lambda: CogVideoXTransformer3DModel(
        **OPEN_SIZES, out_channels=2, time_embed_dim=16, use_rotary_positional_embeddings=True
    ),
    "mochi": lambda: MochiTransformer3DModel(**OPEN_SIZES, pooled_projection_dim=24, time_embed_dim=16),
}
# images and clips; a clip over all the pieces; pieces of one sample alone, and one that begins where a sample does
PACKS = [
    [(1, 2, 3), (3, 3, 3), (1, 1, 2), (2, 2, 2), (1, 1, 1)],
    [(5, 3, 3)],
    [(1, 1, 1), (7, 2, 3), (1, 2, 2)],
    [(1, 2, 2)] * 8,
]


def disturb(module: nn.Module) -> None:
    """Noise on every parameter: at initialisation most of the model is switched off."""
    rand = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=rand))


def inputs(grids) -> tuple[Packed, dict[str, Tensor], list[int]]:
    """A pack's layout; its tokens [T,P], levels [R], words [S,Dt] and weights of the outputs [T,P]; words a sample."""
    rand = torch.Generator().manual_seed(2)
    layout = Packed.of(grids)
    words = [1 + i % 3 for i in range(len(grids))]
    shapes = {"tokens": (layout.tokens, 8), "text": (sum(words), 10), "weights": (layout.tokens, 8)}
    tensors = {name: torch.randn(shape, generator=rand).double() for name, shape in shapes.items()}
    return layout, tensors | {"timestep": torch.rand(layout.frames, generator=rand)}, words


def piece(grids, rank: int, size: int) -> tuple[Packed, dict[str, Tensor], list[int]]:
    """The part of `inputs` that one process works on."""
    layout, tensors, words = inputs(grids)
    span = spans(layout.lengths, size)[rank]
    rows = (layout.frame_segment >= span.first) & (layout.frame_segment < span.last)
    here = {name: tensors[name][span.start : span.stop] for name in ("tokens", "weights")}
    here["timestep"] = tensors["timestep"][rows]
    here["text"] = torch.cat(tensors["text"].split(words)[span.first : span.last])
    return layout.piece(span), here, words[span.first : span.last]


def run(model: VideoDiT, layout: Packed, tensors: dict[str, Tensor], words: list[int]) -> tuple[Tensor, Tensor]:
    """The outputs [T,P], and the gradient of their weighted sum as one vector."""
    y = model(tensors["tokens"], tensors["timestep"], tensors["text"], layout, Packed.of_lengths(words))
    gradients = torch.autograd.grad((y * tensors["weights"]).sum(), list(model.parameters()))
    return y.detach(), torch.cat([g.flatten() for g in gradients])


def assert_near(got: Tensor, want: Tensor, tolerance: float) -> None:
    assert got.shape == want.shape
    assert (got - want).norm() <= tolerance * want.norm(), f"off by {(got - want).norm() / want.norm():.1e}"


# --- what each of the four processes does ---


def as_process(rank: int, port: int, configs: dict[str, DitConfig]) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, WORLD, is_master=rank == 0)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD, store=store, timeout=timedelta(seconds=100))
    pair, four = make_sequence_group(2), make_sequence_group(4)
    assert (pair.rank, pair.size, four.rank, four.size) == (rank % 2, 2, rank, 4)
    three = dist.new_group([0, 1, 2])
    with pytest.raises(UserError, match=r"train\.sequence_parallel is 3.*does not divide the 4 processes"):
        make_sequence_group(3)
    for checkpointing in (False, True):
        for i, grids in enumerate(PACKS):
            same_model(PACKS[(i + rank // 2) % len(PACKS)], pair, checkpointing)  # another pack in each group
            same_model(grids, four, checkpointing)
            if rank < 3:
                same_model(grids, SequenceGroup(three.group_name, rank, 3), checkpointing)
    for kind in JOINT:
        for i, grids in enumerate(PACKS):
            same_joint_model(kind, PACKS[(i + rank // 2) % len(PACKS)], pair, checkpointing=i == 0)
            same_joint_model(kind, grids, four, checkpointing=False)
    half_precision(four)
    with pytest.raises(UserError, match=r"sequence_parallel is 4, which does not divide model\.heads, 2"):
        DitTask(configs["heads"], torch.device("cpu"))
    for name in ("cache", "clips"):
        same_task(configs[name], four)
    dist.barrier()
    dist.destroy_process_group()


def same_model(grids, group: SequenceGroup, checkpointing: bool) -> None:
    torch.manual_seed(0)
    model = VideoDiT(**SMALL).double()  # rounding in float32 would hide small faults, or be taken for one
    disturb(model)
    want = run(model, *inputs(grids))
    model.sequence = group
    if checkpointing:
        model.enable_gradient_checkpointing()
    layout, tensors, words = piece(grids, group.rank, group.size)
    y, gradient = run(model, layout, tensors, words)
    span = spans(layout.whole.lengths, group.size)[group.rank]
    assert_near(y, want[0][span.start : span.stop], 1e-12)
    assert_near(group.add_up(gradient), want[1], 1e-12)
    assert torch.equal(run(model, *inputs(grids))[0], want[0])  # a whole pack is this process's alone


def joint(
    model: OpenBackbone, layout: Packed, text_layout: Packed, tensors: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    text = tensors["text"].repeat(1, 2)[:, :16]
    y = model(tensors["tokens"], tensors["timestep"], text, layout, text_layout)
    weights = list(model.parameters())
    found = torch.autograd.grad((y * tensors["weights"]).sum(), weights, allow_unused=True)
    found = [torch.zeros_like(p) if g is None else g for g, p in zip(found, weights, strict=True)]
    return y.detach(), torch.cat([g.flatten() for g in found])


def same_joint_model(kind: str, grids, group: SequenceGroup, checkpointing: bool) -> None:
    """A published model whose video and text attend to each other; its norms and positions are made in float32."""
    model = packed(lively(JOINT[kind]())).double()
    layout, tensors, words = inputs(grids)
    whole_text = Packed.of_lengths(words)
    want, want_gradient = joint(model, layout, whole_text, tensors)
    model.sequence = group
    if checkpointing:
        model.enable_gradient_checkpointing()
    layout, tensors, words = piece(grids, group.rank, group.size)
    y, gradient = joint(model, layout, replace(Packed.of_lengths(words), whole=whole_text), tensors)
    span = spans(layout.whole.lengths, group.size)[group.rank]
    assert_near(y, want[span.start : span.stop], 1e-5)
    assert_near(group.add_up(gradient), want_gradient, 1e-5)


def half_precision(group: SequenceGroup) -> None:
    model = VideoDiT(**SMALL).double()
    disturb(model)
    whole = inputs(PACKS[0])
    want, want_gradient = run(model, *whole)
    model.float().sequence = group
    layout, tensors, words = piece(PACKS[0], group.rank, group.size)
    with torch.autocast("cpu", torch.bfloat16):
        y, gradient = run(model, layout, {name: x.float() for name, x in tensors.items()}, words)
    span = spans(whole[0].lengths, group.size)[group.rank]
    assert_near(y.double(), want[span.start : span.stop], 0.05)
    assert_near(group.add_up(gradient).double(), want_gradient, 0.05)


def same_task(config: DitConfig, group: SequenceGroup) -> None:
    """Losses of the pieces add up to the pack's; each clip is read by one process and reaches all that need it."""
    task = DitTask(config, torch.device("cpu"))
    disturb(task.model)
    for draws in [Draw(0, 0)], [Draw(20 + i, i) for i in range(9)]:  # with one sample three processes make none
        task.sequence = task.model.sequence = None
        pack = task.make_pack(draws)
        whole = pack if pack.clean is not None else task._encode(pack)
        want, _ = task.loss(task.model, pack, 0)
        task.sequence = task.model.sequence = group
        reads = count_reads(task)
        pack = task.make_pack(draws)
        assert group.add_up(torch.tensor(len(reads))) == len(draws)
        here = task._trade(pack if pack.clean is not None else task._encode(pack))
        span = spans(whole.layout.lengths, group.size)[group.rank]
        words = whole.text_layout.lengths
        assert torch.equal(here.noise, whole.noise[span.start : span.stop])
        assert_near(here.clean, whole.clean[span.start : span.stop], 1e-6)
        assert here.text_layout.lengths == words[span.first : span.last]
        assert_near(here.text, torch.cat(whole.text.split(words)[span.first : span.last]), 1e-6)
        losses, _ = task.loss(task.model, pack, 0)
        got = torch.zeros_like(want).index_copy(0, torch.arange(span.first, span.last), losses)
        assert_near(group.add_up(got.detach()), want.detach(), 1e-5)
        assert pack.tokens == whole.tokens[span.first : span.last]


def count_reads(task: DitTask) -> list[int]:
    source, reads = task.source or task.cache, []
    load = type(source).load
    source.load = lambda index, *keys: (reads.append(index), load(source, index, *keys))[1]
    return reads


# --- tests ---


@pytest.mark.slow  # of the test below, which makes a whole run, the parts
def test_processes_that_share_packs_equal_one(dit_config, digits_data, tmp_path):
    """Two, three and four processes a pack: outputs and gradients of the model, losses of the task."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = ("train.sequence_parallel=4", "caption.dropout=0.3", "data.fps_dropout=0.3")
    heads, rates = ("model.width=64", "model.heads=4"), ("model.fps_condition=true", "model.rope_fps=12")
    online = ("data.latents=none", f"data.manifest={digits_data / 'train.jsonl'}")
    configs = {
        "cache": dit_config(tmp_path, *common, *heads, *rates),
        "clips": dit_config(tmp_path, *common, *heads, *online, *rates),
        "heads": dit_config(tmp_path, *common),
    }
    # one import for all four, where no server has been started yet
    mp.get_context("forkserver").set_forkserver_preload(["pytest", "hypothesis", "latentvid.training.stages.dit.task"])
    mp.start_processes(as_process, (port, configs), nprocs=WORLD, start_method="forkserver")


@pytest.mark.distributed
def test_a_run_whose_processes_share_packs_equals_one_process(dit_config, tiny_latents, tmp_path):
    """The real program under DDP, with accumulation; then one process goes on with what two began."""
    options = (
        "validation.every=2",
        f"validation.latents={tiny_latents}",
        "validation.samples=5",
        "data.packs_per_step=2",
        "optim.schedule=constant",
        "optim.lr=1e-3",
        "checkpoint.every=2",
        "log.draws=true",
        "model.fps_condition=true",
        "model.rope_fps=12",
    )
    one, two = tmp_path / "one", tmp_path / "two"
    save_config(dit_config(two, *options, "train.steps=4", "train.sequence_parallel=2"), tmp_path / "config.yaml")
    launch("ddp", 2, [ROOT / "train/train_dit.py", tmp_path / "config.yaml"])
    train(dit_config(one, *options, "train.steps=4"), DitTask)
    difference(two, one).check()
    for run_dir in (one, two):
        train(dit_config(run_dir, *options, "train.steps=6"), DitTask)
    difference(two, one).check()
    assert_measured_alike(two, one)
    assert len(losses(one)) == 6


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 6))
@settings(max_examples=50, deadline=None, database=None, derandomize=True)
def test_samples_are_made_by_processes_with_about_the_same_to_do(sizes, processes):
    maker = makers(sizes, processes)
    assert maker == makers(list(sizes), processes) and len(maker) == len(sizes)
    load = [sum(n for n, rank in zip(sizes, maker, strict=True) if rank == g) for g in range(processes)]
    assert sum(load) == sum(sizes)
    assert max(load) <= sum(sizes) / processes + max(sizes)
    if len(sizes) <= processes:
        assert max(load) == max(sizes)  # each its own


def test_losses_of_pieces_add_up():
    """A given frame (level 0) counts in no piece, and a sample's mean is over all its noised tokens, here or not."""
    layout = Packed.of([(3, 2, 2), (1, 1, 3), (2, 1, 1)])
    prediction, target = torch.randn(layout.tokens, 5), torch.randn(layout.tokens, 5)
    timestep = torch.tensor([0.0, 0.4, 0.9, 0.7, 0.0, 0.0])
    want = loss_per_sample(prediction, target, timestep, layout)
    for size in (2, 3, 5):
        got = torch.zeros(3)
        for span in spans(layout.lengths, size):
            rows = (layout.frame_segment >= span.first) & (layout.frame_segment < span.last)
            part = slice(span.start, span.stop)
            losses = loss_per_sample(prediction[part], target[part], timestep[rows], layout.piece(span))
            got[span.first : span.last] += losses
        torch.testing.assert_close(got, want)


def test_processes_of_a_group_get_the_same_packs():
    plan = dict(tokens=[3, 5, 2, 4] * 5, budget=10, packs=4, seed=0)
    feeds = [
        iterate_steps(Plan(**plan), tuple, rank=rank, world=4, workers=0, pin_memory=False, sequence=2)
        for rank in range(4)
    ]
    for _ in range(3):
        (step, first), (_, again), (_, second), (_, last) = (next(feed) for feed in feeds)
        assert first == again and second == last and len(first) == 2
        assert sorted(tuple(pack) for _, pack in first + second) == sorted(step.packs)
    with pytest.raises(UserError, match=r"packs_per_step is 3, which 2 groups of 2 processes.*multiple of 2"):
        plan["packs"] = 3
        next(iterate_steps(Plan(**plan), tuple, rank=0, world=4, workers=0, pin_memory=False, sequence=2))


def test_one_process_cannot_share_and_a_piece_needs_a_group(dit_config, tmp_path):
    assert make_sequence_group(1) is None
    with pytest.raises(UserError, match=r"train\.sequence_parallel is 2, but there is one process.*--num_processes 2"):
        DitTask(dit_config(tmp_path, "train.sequence_parallel=2"), torch.device("cpu"))
    layout, tensors, words = piece(PACKS[0], 0, 2)
    with pytest.raises(ValueError, match="a piece of a pack, but the model has no group"):
        run(VideoDiT(**SMALL).double(), layout, tensors, words)
