"""Blocks in main memory: the same numbers to the last bit, few of them on the device, and each brought in time."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.checkpoint import checkpoint

from latentvid.errors import UserError
from latentvid.models.quantised import quantise
from latentvid.training.dryrun.memory import size, state_bytes
from latentvid.training.parallel.block_swap import SLOTS, BlockSwap, Lane, host_bytes, swapped_bytes
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train

CPU = torch.device("cpu")
LORA = ("adapter.kind=lora", "adapter.rank=4", "train.gradient_checkpointing=true", "model.depth=5")


class Block(nn.Module):
    """A frozen layer of another size in each second block, and one that is trained."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.frozen = nn.Sequential(nn.Linear(8, hidden), nn.GELU(), nn.Linear(hidden, 8)).requires_grad_(False)
        self.trained = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.frozen(x) * self.trained(x).sigmoid()


def blocks_of(count: int) -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList(Block(16 + 8 * (i % 2)) for i in range(count))


def passes(blocks: nn.ModuleList, steps: int = 2) -> list[torch.Tensor]:
    """Losses and gradients of some steps, and what a pass without gradients makes between them."""
    found, x = [], torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        y = x
        for block in blocks:
            y = checkpoint(block, y, use_reentrant=False)
        y.square().sum().backward()
        found += [y.detach(), *(p.grad.clone() for p in blocks.parameters() if p.requires_grad)]
        with torch.no_grad():
            for block in blocks:
                y = block(y)
        found.append(y)
    return found


class Watched(Lane):
    """Remembers what was copied, in words; a copy comes at the last moment, when it is waited for."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.log: list[str] = []

    def copy(self, slot, source):
        self.log.append("copy")
        slot.fill_(255)  # until it has come
        return slot, source

    def wait(self, copied):
        self.log.append("wait")
        if copied is not None:
            copied[0].copy_(copied[1])


@pytest.mark.parametrize("count", [3, 4, 7])
@pytest.mark.parametrize("coded", [False, True])
def test_all_numbers_are_the_same_to_the_last_bit(count, coded):
    plain = blocks_of(7)
    if coded:
        quantise([block.frozen for block in plain], "nf4")
    moved = copy.deepcopy(plain)
    swap = BlockSwap(moved, count, CPU)
    swap.lane = Watched()
    for ours, theirs in zip(passes(moved), passes(plain), strict=True):
        assert torch.equal(ours, theirs)
    # all values are where the model's parameters say, whatever is on the device
    assert all(torch.equal(a, b) for a, b in zip(moved.parameters(), plain.parameters(), strict=True))


def test_two_of_them_are_on_the_device_and_each_comes_before_it_is_asked_for():
    blocks = blocks_of(7)
    swap = BlockSwap(blocks, 7, CPU)
    swap.lane = lane = Watched()
    asked = []
    for number, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda *_, n=number: asked.append((n, {*swap.inside}, on_device(swap, blocks))))
    x = torch.ones(1, 8)
    for _ in range(2):
        y = x
        for block in blocks:
            y = checkpoint(block, y, use_reentrant=False)
        y.sum().backward()
    ahead = [{i, min(i + 1, 6)} for i in range(6)] + [{5, 6}]
    back = [{6, 5}, *({i, i - 1} for i in range(5, 0, -1)), {0, 1}]
    assert [n for n, _, _ in asked[:14]] == [*range(7), *range(6, -1, -1)]
    assert [inside for _, inside, _ in asked[:14]] == ahead + back
    # what is on its way is not yet where the model looks
    assert all(n in there and there <= inside for n, inside, there in asked)
    assert all(there == {n} for n, _, there in asked[1:6])
    # 0 at first; 1 to 6; 4 to 0 on the way back. The next step begins with what is there
    first = 1 + 6 + 5
    assert lane.log.count("copy") == first + 5 + 5
    # a copy is asked for after what the block before it waits for: beside that block's pass
    assert "".join(word[0] for word in lane.log[:8]) == "cwcwcwcw"


def on_device(swap: BlockSwap, blocks: nn.ModuleList) -> set[int]:
    inside = {slot.untyped_storage().data_ptr() for slot in swap.slots}
    assert len(inside) == SLOTS
    return {i for i, b in enumerate(blocks) if b.frozen[0].weight.untyped_storage().data_ptr() in inside}


def test_a_model_is_moved_and_wrapped_without_them():
    blocks = blocks_of(4)
    swap = BlockSwap(blocks, 3, CPU)
    every = [name for name, _ in blocks.named_parameters()]
    with swap.apart():
        left = [name for name, _ in blocks.named_parameters()]
        blocks.to("meta")
    assert sum(".frozen." in name for name in left) == 4 and sum(".trained." in name for name in left) == 8
    assert [name for name, _ in blocks.named_parameters()] == every
    assert sum(p.is_meta for p in blocks.parameters()) == len(left)


@pytest.fixture(scope="module")
def begun(tmp_path_factory, dit_config):
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    run = tmp_path_factory.mktemp("ours") / "run"
    train(dit_config(run, "train.steps=1", "model.depth=5"), DitTask)
    return run / "pipeline"


def test_a_run_with_it_is_one_without(begun, dit_config, tmp_path, fresh_accelerate):
    options = (
        f"init={begun}",
        *LORA,
        "train.steps=2",
        "checkpoint.every=2",
        "samples.every=2",
        "samples.prompts=[a red 7]",
    )
    for name, more in (("without", ()), ("with", ("train.swap_blocks=4",))):
        train(dit_config(tmp_path / name, *options, *more), DitTask)
    for kind in ("model", "ema", "optimizer"):
        a, b = (load_file(tmp_path / n / f"checkpoints/step-00000002/{kind}.safetensors") for n in ("without", "with"))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    shown = [sorted((tmp_path / name / "samples").rglob("*.*")) for name in ("without", "with")]
    assert len(shown[0]) == len(shown[1]) > 0
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*shown, strict=True))


def test_a_dry_run_counts_what_is_left_on_the_device(begun, dit_config, tmp_path):
    task = DitTask(dit_config(tmp_path, f"init={begun}", *LORA, "train.swap_blocks=5"), CPU)
    frozen = sum(p.numel() * p.element_size() for p in task.model.blocks.parameters() if not p.requires_grad)
    rows = {name: held for name, _, held in state_bytes(task.model, task.blocks, "adamw", 1, swap=5)}
    assert set(rows) == {"single", "DDP"}
    assert rows["single"].weights == size(task.model) - frozen + SLOTS * frozen / 5
    assert host_bytes(task.model.blocks, 5) == frozen and host_bytes(task.model.blocks, 0) == 0
    assert swapped_bytes(task.model.blocks, 0) == 0
    before = task.model.blocks[0].mlp.fc1_g.weight.untyped_storage().data_ptr()
    swap = BlockSwap(task.model.blocks, 5, CPU)
    assert task.model.blocks[0].mlp.fc1_g.weight.untyped_storage().data_ptr() != before
    held = sum(held.host.numel() for held in swap.held)
    assert frozen <= held < 1.05 * frozen + 5 * 64 * 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("train.swap_blocks=3",), "without recomputing .* set gradient_checkpointing=true"),
        (("train.swap_blocks=2", "train.gradient_checkpointing=true"), "two are on the device anyway"),
        (("train.swap_blocks=3", "train.gradient_checkpointing=true", "train.compile=true"), "compile=true"),
    ],
)
def test_what_it_does_not_go_with_is_refused(options, message, dit_config, tmp_path):
    with pytest.raises(UserError, match=message):
        dit_config(tmp_path, *options)


def test_blocks_that_are_trained_cannot_be_swapped():
    blocks = nn.ModuleList([*blocks_of(2), nn.Linear(8, 8)])
    with pytest.raises(UserError, match="train.swap_blocks=3: of 2 blocks the weights stay as they are"):
        BlockSwap(blocks, 3, CPU)
