"""The plan: every sample once an epoch, within the budget, the same whoever asks and however often it is stopped."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentvid.data.plan import LOOKAHEAD, Plan, Step
from latentvid.errors import UserError
from latentvid.training.loader import iterate_steps

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=60)


def mixed(count: int = 97) -> list[int]:
    return np.random.default_rng(0).choice([4, 16, 80, 120, 250], size=count).tolist()


def run(plan: Plan, steps: int) -> list[Step]:
    return [plan.next() for _ in range(steps)]


def draws(steps: list[Step]) -> list[tuple[int, int]]:
    return [draw for step in steps for pack in step.packs for draw in pack]


@settings(max_examples=60, deadline=None)
@given(tokens=SIZES, budget=st.integers(40, 130), packs=st.integers(1, 5), seed=st.integers(0, 9))
def test_every_sample_once_an_epoch_within_the_budget(tokens, budget, packs, seed):
    plan = Plan(tokens, budget=budget, packs=packs, seed=seed)
    steps = []
    while plan.epoch < 3:
        step = plan.next()
        fills = [sum(tokens[draw.index] for draw in pack) for pack in step.packs]
        assert len(fills) == packs and min(fills) > 0 and max(fills) <= budget  # no rank is without work
        assert (step.tokens, step.samples) == (sum(fills), sum(map(len, step.packs)))
        steps.append(step)
    taken = draws(steps) + plan.waiting
    assert sorted(number for number, _ in taken) == list(range(plan.drawn))
    epochs = Counter((number // len(tokens), index) for number, index in taken)
    assert set(epochs.values()) == {1}
    assert all(epochs[epoch, index] for epoch in range(3) for index in range(len(tokens)))


def test_each_epoch_and_seed_has_its_own_order():
    def order(seed: int, epoch: int) -> list[int]:
        plan = Plan([1] * 50, budget=50, packs=1, seed=seed)  # a step is an epoch
        return [index for _, index in draws([run(plan, epoch + 1)[-1]])]

    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(o) for o in orders}) == 4 and all(sorted(o) == list(range(50)) for o in orders)


@pytest.mark.parametrize("stop", [1, 2, 7, 19, 40])
def test_goes_on_from_saved_state_as_if_never_stopped(stop):
    arguments = {"budget": 256, "packs": 3, "seed": 5}
    whole = Plan(mixed(), **arguments)
    run(whole, stop)
    resumed = Plan(mixed(), **arguments)
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    assert run(resumed, 30) == run(whole, 30)
    assert resumed.state_dict() == whole.state_dict()


@pytest.mark.parametrize("workers", [1, 2, 3, 6])
def test_ranks_share_out_the_same_steps(workers):
    """The packs of all ranks together are the plan's, whatever the number of ranks; the read-ahead moves no state."""
    arguments = {"budget": 256, "packs": 6, "seed": 0}
    expected = run(Plan(mixed(), **arguments), 5)
    plans = [Plan(mixed(), **arguments) for _ in range(workers)]
    feeds = [
        iterate_steps(plan, list, rank=rank, world=workers, workers=0, pin_memory=False)
        for rank, plan in enumerate(plans)
    ]
    for step in expected:
        shares = [next(feed) for feed in feeds]
        assert all(whole == step for whole, _ in shares)
        together = [None] * 6
        for rank, (_, packs) in enumerate(shares):
            together[rank::workers] = [tuple(pack) for pack in packs]
        assert tuple(together) == step.packs
    reference = Plan(mixed(), **arguments)
    run(reference, 5)
    assert all(plan.state_dict() == reference.state_dict() for plan in plans)


def test_packs_that_processes_cannot_share_are_refused():
    plan = Plan([1], budget=4, packs=3, seed=0)
    with pytest.raises(UserError, match=r"data\.packs_per_step is 3.*2 processes.*multiple of 2"):
        next(iterate_steps(plan, list, rank=0, world=2, workers=0, pin_memory=False))


def test_waiting_is_bounded_in_number_and_in_steps():
    """Large samples that fit no rest of a pack wait, but only so many and not for long; state stays small."""
    plan = Plan([60] * 200 + [1] * 20, budget=100, packs=2, seed=0)
    for n in range(200):
        before = {draw.number for draw in plan.waiting}
        step = plan.next()
        assert len(plan.waiting) <= LOOKAHEAD
        done = {number for number, _ in draws([step])}
        assert not before or min(before) in done, f"the oldest waiting sample was passed over at step {n}"


def test_packs_are_nearly_full():
    plan = Plan(mixed(500), budget=1024, packs=4, seed=0)
    tokens = sum(step.tokens for step in run(plan, 100))
    assert tokens / (100 * 4 * 1024) > 0.95


@pytest.mark.parametrize(
    ("tokens", "change", "message"),
    [
        ([], {}, "data set is empty"),
        ([3, 300], {}, r"holds 256 tokens but the largest sample has 300: raise data\.tokens_per_pack"),
        ([3], {"packs": 0}, r"data\.packs_per_step is 0"),
    ],
)
def test_what_cannot_be_planned_is_said(tokens, change, message):
    with pytest.raises(UserError, match=message):
        Plan(tokens, **{"budget": 256, "packs": 1, "seed": 0} | change)


def test_state_of_other_data_is_refused():
    state = Plan([1] * 5, budget=4, packs=1, seed=0).state_dict()
    with pytest.raises(UserError, match="began with 5 samples, the data set now has 6"):
        Plan([1] * 6, budget=4, packs=1, seed=0).load_state_dict(state)
