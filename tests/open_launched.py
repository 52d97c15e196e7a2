"""What each process of a launch runs: small published models through the strategy that `accelerate launch` chose.

    python tests/open_launched.py NAME...      # of open_instances.INSTANCES; two processes

Each model passes twice forward and backward: the processes have packs of their own, and then share one by Ulysses, with
recomputed blocks. Outputs, and the gradients that the optimiser is given, are compared with one process's.
"""

import copy
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate.state import AcceleratorState
from open_instances import INSTANCES
from open_models import Sample, beside_text, grids_of, together, tokens_of
from torch import Tensor

from latentvid.config.sections import Optim, Train
from latentvid.models.open import Conditions, OpenBackbone, packed
from latentvid.packing import Packed, spans
from latentvid.sequence import SequenceGroup, make_sequence_group
from latentvid.training.launch import make_accelerator
from latentvid.training.parallel.zero import make_strategy

WORLD = 2
CONFIG = SimpleNamespace(
    optim=Optim(clip=0.0),
    train=Train(mixed_precision="no"),
    run=SimpleNamespace(dry_run=True, dir=Path()),
    log=SimpleNamespace(trackers=()),
)


def arguments(made: Sequence[Sample], patch: tuple[int, int, int]) -> dict:
    """Of a backbone's forward, for a whole pack."""
    return {
        "tokens": torch.cat([tokens_of(s.latent, patch) for s in made]),
        "timestep": torch.cat([s.levels for s in made]),
        "text": torch.cat([s.text for s in made]),
        "layout": Packed.of(grids_of(made, patch)),
        "text_layout": Packed.of_lengths([len(s.text) for s in made]),
        "fps": torch.tensor([s.fps for s in made]),
        "conditions": together(made, patch),
    }


def piece(made: Sequence[Sample], patch: tuple[int, int, int], group: SequenceGroup) -> tuple[dict, slice]:
    """The same of this process's piece, and which tokens of the pack it has."""
    whole = arguments(made, patch)
    layout, all_words = whole["layout"], whole["text_layout"]
    span = spans(layout.lengths, group.size)[group.rank]
    tokens, here = slice(span.start, span.stop), made[span.first : span.last]
    given = replace(together(here, patch) or Conditions(), whole_extra=beside_text(made))
    if given.channels is not None:
        given = replace(given, channels=whole["conditions"].channels[tokens])
    words = replace(Packed.of_lengths([len(s.text) for s in here]), whole=all_words)
    return {
        "tokens": whole["tokens"][tokens],
        "timestep": torch.cat([s.levels for s in here]),
        "text": torch.cat([s.text for s in here]),
        "layout": layout.piece(span),
        "text_layout": words,
        "fps": torch.tensor([s.fps for s in here]),
        "conditions": given,
    }, tokens


def weights_of(output: Tensor) -> Tensor:
    return torch.linspace(-1, 1, output.numel()).reshape(output.shape)


def one_process(model: OpenBackbone, packs: Sequence[Sequence[Sample]]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Outputs of each pack, and the gradients of the mean of their losses over the processes."""
    outs = [model(**arguments(made, model.patch)) for made in packs]
    sum((y * weights_of(y)).sum() for y in outs).div(WORLD).backward()
    return outs, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def near(got: Tensor, want: Tensor, size: Tensor, what: str) -> None:
    assert got.shape == want.shape, what
    assert (got - want).norm() <= 1e-5 * size, f"{what}: off by {float((got - want).norm() / size):.1e}"


def check(name: str, shared: bool) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # an Accelerator is of one model
    accelerator, group = make_accelerator(CONFIG), make_sequence_group(WORLD)
    torch.manual_seed(0)  # all processes have the same weights
    raw, made = INSTANCES[name]()
    model = packed(raw)
    packs = [made] if shared else [made[rank::WORLD] for rank in range(WORLD)]
    wants, gradients = one_process(copy.deepcopy(model), packs)
    values = {key: p.detach().clone() for key, p in model.named_parameters()}
    if shared:
        model.sequence = group
        model.enable_gradient_checkpointing()
        inputs, part = piece(made, model.patch, group)
        want, weights = wants[0][part], weights_of(wants[0])[part]
    else:
        inputs, want = arguments(packs[group.rank], model.patch), wants[group.rank]
        weights = weights_of(want)
    optimizer = torch.optim.SGD([{"params": [p for p in model.parameters() if p.requires_grad], "part": ""}], lr=1.0)
    strategy = make_strategy(accelerator, CONFIG, model, optimizer, ragged=False)
    strategy.model.train()  # which changes nothing in these models, and lets ZeRO and FSDP2 work as in training
    with strategy.accumulating(last=True):
        out = strategy(**inputs)
        strategy.backward((out * weights).sum())
    near(out.detach(), want.detach(), want.detach().norm(), f"{name}'s outputs under {strategy.name}")
    strategy.update()
    total, wrong = sum(g.square().sum() for g in gradients.values()).sqrt(), torch.zeros(())
    for p in strategy.pieces():
        want = gradients.get(p.name, torch.zeros(p.shape)).flatten()[p.start : p.stop]
        got = values[p.name].flatten()[p.start : p.stop] - p.value.flatten()  # what a step of rate 1 took away
        wrong += (got - want).square().sum()
    error = float(wrong.sqrt() / total)
    assert error < 1e-5, f"{name}'s gradients under {strategy.name}: off by {error:.1e}"
    print(f"{name}: {strategy.name}{', a pack shared' if shared else ''}: gradients {error:.1e}", flush=True)


def main(names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    for name in names:
        for shared in (False, True):
            check(name, shared)


if __name__ == "__main__":
    main(sys.argv[1:])
