"""The plan: every sample once an epoch, within the budget, the same whoever asks and however often it is stopped."""

import copy
import json
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentvid.data.plan.plan import Plan, Step, Stream
from latentvid.errors import UserError
from latentvid.training.feed.loader import iterate_steps

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=60)
WEIGHTS = st.lists(st.floats(0.01, 10), min_size=1, max_size=4)


def mixed(count: int = 97) -> list[int]:
    return np.random.default_rng(0).choice([4, 16, 80, 120, 250], size=count).tolist()


def videos(count: int, seed: int = 0) -> np.ndarray:
    """Tokens of images and clips of many lengths, 250 to 8,580 each."""
    generator = np.random.default_rng(seed)
    frames = np.clip(generator.lognormal(np.log(96), 0.6, count), 5, 129).astype(int)
    frames[generator.random(count) < 0.3] = 1
    return (1 + (frames - 1) // 4) * generator.choice([250, 252, 256, 260], size=count)


def attention_cost(tokens: np.ndarray) -> np.ndarray:
    return tokens + tokens**2 / (6 * 3072)


def dealt(count: int, weights: list[float]) -> list[Stream]:
    """`count` samples dealt out in turn to a stream a weight; as many streams as have samples."""
    return [Stream(np.arange(count)[n :: len(weights)], weight) for n, weight in enumerate(weights[:count])]


def run(plan: Plan, steps: int) -> list[Step]:
    return [plan.next() for _ in range(steps)]


def draws(steps: list[Step]) -> list[tuple[int, int]]:
    return [draw for step in steps for pack in step.packs for draw in pack]


def carried(plan: Plan) -> list[tuple[int, int, int]]:
    """(number, index, stream) of the draws that the window under way found waiting."""
    flat = plan.state_dict()["carried"]
    return list(zip(flat[0::3], flat[1::3], flat[2::3], strict=True))


@settings(max_examples=50, deadline=None)
@given(
    tokens=SIZES, budget=st.integers(40, 130), packs=st.integers(1, 5), seed=st.integers(0, 9), weights=WEIGHTS,
    power=st.floats(0, 2),
)  # fmt: skip
def test_every_sample_once_an_epoch_within_the_budget(tokens, budget, packs, seed, weights, power):
    streams, cost = dealt(len(tokens), weights), np.array(tokens) ** power
    plan = Plan(tokens, budget=budget, packs=packs, seed=seed, cost=cost, streams=streams)
    steps, waited = [], set()
    while min(plan.epochs) < 2 and plan.epoch < 8:
        step = plan.next()
        fills = [sum(tokens[draw.index] for draw in pack) for pack in step.packs]
        assert len(fills) == packs and min(fills) > 0 and max(fills) <= budget  # no rank is without work
        assert (step.tokens, step.samples) == (sum(fills), sum(map(len, step.packs)))
        assert step.costs == pytest.approx([sum(cost[draw.index] for draw in pack) for pack in step.packs])
        assert step.fill == pytest.approx(sum(fills) / packs / budget) and 0 < step.balance <= 1 + 1e-9
        steps.append(step)
        if plan.state_dict()["place"] == 1:  # a new window: what found no room is placed at once the next time
            numbers = {number for number, *_ in carried(plan)}
            assert not numbers & waited and len(numbers) < packs * plan.lookahead
            waited = numbers
    steps += run(plan, plan.lookahead - plan.state_dict()["place"])
    waiting = [draw[:2] for draw in plan.carried]
    taken = draws(steps) + waiting
    assert sorted(number for number, _ in taken) == list(range(len(taken)))  # none lost, none twice
    for stream, epochs in zip(streams, plan.epochs, strict=True):
        mine = [index for _, index in sorted(taken) if index in stream.index]
        assert epochs == pytest.approx((len(mine) - sum(i in stream.index for _, i in waiting)) / len(stream.index))
        for start in range(0, len(mine) - len(stream.index) + 1, len(stream.index)):
            assert sorted(mine[start : start + len(stream.index)]) == stream.index.tolist()


def test_each_epoch_and_seed_has_its_own_order():
    def order(seed: int, epoch: int) -> list[int]:
        plan = Plan([1] * 50, budget=50, packs=1, seed=seed)  # a step is an epoch
        return [index for _, index in draws([run(plan, epoch + 1)[-1]])]

    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(o) for o in orders}) == 4 and all(sorted(o) == list(range(50)) for o in orders)


@pytest.mark.parametrize("streams", [None, dealt(97, [1.0, 0.2, 3.0])], ids=["one", "three"])
def test_goes_on_from_saved_state_as_if_never_stopped(streams):
    arguments = {"budget": 256, "packs": 3, "seed": 5, "streams": streams, "cost": np.array(mixed()) ** 1.5}
    whole = Plan(mixed(), **arguments)
    states = [whole.state_dict()]
    steps = []
    for _ in range(5 * whole.lookahead):
        steps.append(whole.next())
        states.append(json.loads(json.dumps(whole.state_dict())))
    for stop in {0, 1, whole.lookahead - 1, whole.lookahead, whole.lookahead + 1, 3 * whole.lookahead + 2}:
        resumed = Plan(mixed(), **arguments)
        resumed.load_state_dict(states[stop])
        assert resumed.state_dict() == states[stop]
        for n in range(stop, len(steps)):
            assert resumed.next() == steps[n]
            assert resumed.state_dict() == states[n + 1]
        assert (resumed.epoch, resumed.epochs) == (whole.epoch, whole.epochs)


def test_reading_ahead_from_a_copy_moves_no_state():
    plan = Plan(mixed(), budget=256, packs=3, seed=5)
    run(plan, 3)
    before = plan.state_dict()
    ahead = copy.deepcopy(plan)
    steps = run(ahead, 3 * plan.lookahead)
    assert plan.state_dict() == before and run(plan, len(steps)) == steps


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
            together[rank::workers] = [tuple(draws) for draws, _ in packs]
        assert tuple(together) == step.packs
    reference = Plan(mixed(), **arguments)
    run(reference, 5)
    assert all(plan.state_dict() == reference.state_dict() for plan in plans)


def test_packs_that_processes_cannot_share_are_refused():
    plan = Plan([1], budget=4, packs=3, seed=0)
    with pytest.raises(UserError, match=r"data\.packs_per_step is 3.*2 processes.*multiple of 2"):
        next(iterate_steps(plan, list, rank=0, world=2, workers=0, pin_memory=False))


def test_packs_are_full_cost_the_same_and_mix_shapes():
    tokens = videos(30_000)
    plan = Plan(tokens, budget=32768, packs=64, seed=0, cost=attention_cost(tokens))
    steps = run(plan, 3 * plan.lookahead)
    assert sum(step.tokens for step in steps) / (len(steps) * 64 * 32768) > 0.97
    costs = np.array([step.costs for step in steps])
    assert costs.mean() / costs.max(1).mean() > 0.997  # useful work over the slowest rank's
    shapes = [len({int(tokens[draw.index]) > 260 for draw in pack}) for step in steps for pack in step.packs]
    assert np.mean(np.array(shapes) == 2) > 0.7  # an image or more, and a clip or more
    for world in (2, 8, 16, 32):  # with accumulation each rank waits at each pack, or once a step
        turns = costs.reshape(len(steps), 64 // world, world)
        assert turns.mean() / turns.max(2).mean() > 0.997
        assert turns.sum(1).mean() / turns.sum(1).max(1).mean() > 0.997


def test_packs_that_cannot_cost_the_same_share_steps_with_their_likes():
    """One sample in 30 costs more than all that else fits a pack."""
    tokens = np.random.default_rng(0).choice([30, 1000], p=[29 / 30, 1 / 30], size=20_000)
    plan = Plan(tokens, budget=1500, packs=8, seed=0, cost=tokens**2)
    assert np.mean([step.balance for step in run(plan, plan.lookahead)]) > 0.98


@settings(max_examples=40, deadline=None)
@given(weights=st.lists(st.floats(0.01, 10), min_size=2, max_size=6), seed=st.integers(0, 99))
def test_streams_keep_their_shares_at_all_times(weights, seed):
    tokens = np.random.default_rng(seed).integers(1, 101, size=120)
    plan = Plan(tokens, budget=200, packs=2, seed=seed, streams=dealt(120, weights))
    shares = np.array(weights) / sum(weights)
    drawn = np.zeros(len(weights))
    taken = draws(run(plan, 3 * plan.lookahead)) + [draw[:2] for draw in plan.carried]
    for _, index in sorted(taken):
        drawn[index % len(weights)] += tokens[index]
        assert abs(drawn - shares * drawn.sum()).max() <= tokens.max() * (1 + 1e-9)


def test_small_samples_that_fit_beside_no_large_one_do_not_wait_for_ever():
    plan = Plan([60] * 190 + [45] * 10, budget=100, packs=2, seed=0)
    waited = set()
    for _ in range(6):
        run(plan, plan.lookahead)
        numbers = {number for number, *_ in carried(plan)}
        assert len(numbers) < 2 * plan.lookahead and not numbers & waited
        waited = numbers
    assert waited


def test_epoch_counts_what_was_handed_out():
    tokens = np.array([1] * 300 + [4] * 100)
    plan = Plan(tokens, budget=20, packs=2, seed=0, streams=[Stream(np.arange(300), 1), Stream(np.arange(300, 400), 1)])
    assert (plan.epoch, plan.epochs) == (0, [0, 0])
    given = Counter(index < 300 for _, index in draws(run(plan, 25)))
    assert plan.epoch == sum(given.values()) / 400
    assert plan.epochs == [given[True] / 300, given[False] / 100]
    assert plan.epochs[1] == pytest.approx(
        plan.epochs[0] * 3 / 4, abs=0.1
    )  # half the tokens each: 500 * 0.6, 500 * 0.8


@pytest.mark.parametrize("sizes", [[8580], [16385], [11000, 7000], [32768, 1], [9000, 13000, 17000, 25000]])
def test_saved_state_stays_small(sizes):
    """Sizes that leave much over, at 64 ranks, a million samples on."""
    plan = Plan(np.resize(sizes, 100_000), budget=32768, packs=64, seed=0)
    for source in plan.sources:
        source.drawn = 10_000_000  # long numbers
    largest = 0
    for _ in range(4):
        run(plan, plan.lookahead)
        largest = max(largest, len(json.dumps(plan.state_dict())))
    assert largest < 24_000


def test_a_million_samples():
    """About as fast as a small data set, and little memory beyond the arrays given."""
    tokens = np.resize(videos(50_000), 1_000_000)
    cost = attention_cost(tokens)
    tracemalloc.start()
    plan = Plan(tokens, budget=32768, packs=64, seed=0, cost=cost)
    step = plan.next()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert step.samples > 64 and peak < 150e6


@pytest.mark.parametrize(
    ("tokens", "change", "message"),
    [
        ([], {}, "data set is empty"),
        ([3, 300], {}, r"holds 256 tokens but the largest sample has 300: raise data\.tokens_per_pack"),
        ([3, 0], {}, "sample 1 of the data set has no tokens"),
        ([3], {"packs": 0}, r"data\.packs_per_step is 0"),
        ([3, 4], {"cost": np.array([1.0])}, "each of the 2 samples needs one cost"),
        ([3, 4], {"cost": np.array([1.0, 0.0])}, "finite and above 0"),
        ([3], {"streams": []}, "no source of data"),
        (
            [3],
            {"streams": [Stream(np.array([0]), 1), Stream(np.array([], dtype=int), 1)]},
            "source 1 .* no sample left",
        ),
        ([3], {"streams": [Stream(np.array([0]), 0)]}, "source 0 .* weight 0: it must be above 0"),
        ([3], {"streams": [Stream(np.array([1]), 1)]}, "source 0 .* outside 0 to 0"),
    ],
)
def test_what_cannot_be_planned_is_said(tokens, change, message):
    with pytest.raises(UserError, match=message):
        Plan(tokens, **{"budget": 256, "packs": 1, "seed": 0} | change)


@pytest.mark.parametrize(
    ("tokens", "change", "message"),
    [
        ([1, 2, 3, 4, 5, 6], {}, "began with 5 samples, the data set now has 6"),
        ([1, 2, 3, 4, 6], {}, r"sizes or the order of the 5 samples .* \(15 tokens then, 16 now\)"),
        ([1, 2, 3, 5, 4], {}, "sizes or the order"),
        ([1, 2, 3, 4, 5], {"cost": np.arange(1, 6) ** 2}, "cost of samples .* changed"),
        ([1, 2, 3, 4, 5], {"streams": dealt(5, [1, 2])}, "sources or their weights changed"),
        ([1, 2, 3, 4, 5], {"seed": 1}, r"run\.seed was 0 .* is 1"),
    ],
)
def test_state_of_another_run_is_refused(tokens, change, message):
    plan = Plan([1, 2, 3, 4, 5], budget=8, packs=1, seed=0)
    plan.next()
    with pytest.raises(UserError, match=message):
        Plan(tokens, **{"budget": 8, "packs": 1, "seed": 0} | change).load_state_dict(plan.state_dict())


def test_state_of_another_version_is_refused():
    with pytest.raises(UserError, match="another version"):
        Plan([1], budget=8, packs=1, seed=0).load_state_dict({"drawn": 3, "waiting": [], "samples": 1})


@pytest.mark.parametrize(("packs", "budget"), [(2**16, 2**15), (1, 2**26), (2**16, 256)])
def test_a_step_that_would_hold_a_small_data_set_many_times_is_refused_at_once(packs, budget):
    """Legal numbers whose product is not: planning such a step would take minutes and gigabytes."""
    with pytest.raises(UserError, match=r"would draw the 100 samples [\d,]+ times over .*: lower one of them"):
        Plan([48] * 100, budget=budget, packs=packs, seed=0)
    Plan([48] * 100, budget=2**12, packs=2**9, seed=0)


def test_a_step_may_be_as_large_as_the_data_set():
    assert Plan(np.full(70_000, 3), budget=210_000, packs=1, seed=0).next().samples == 70_000


@pytest.mark.parametrize("made", [0, 3, 200])
def test_a_stage_follows_another_in_the_data_that_they_share(made):
    """The plan of a stage with the same data and packs goes on as if nothing had been; no number comes twice."""
    tokens = [3, 5, 2, 7, 1, 4] * 20
    options = {"budget": 16, "packs": 2, "seed": 3}
    first, second = Plan(tokens, **options), Plan(tokens, **options)
    run(first, made)
    second.follow(json.loads(json.dumps(first.state_dict())), same_data=True)
    assert run(second, 50) == run(first, 50)


@pytest.mark.parametrize("made", [1, 3, 200])
def test_a_stage_of_other_data_begins_anew_above_all_numbers(made):
    """In orders of its own, which its state keeps; whether the data, their sizes or the packs are others."""
    tokens = [3, 5, 2, 7, 1, 4] * 20
    options = {"budget": 16, "packs": 2, "seed": 3}
    first = Plan(tokens, **options)
    used = {draw.number for step in run(first, made) for pack in step.packs for draw in pack}
    state = json.loads(json.dumps(first.state_dict()))
    alone = run(Plan(tokens, **options), 60)
    for same, change in ((False, {}), (True, {"budget": 32}), (True, {"packs": 3})):
        plan = Plan(tokens, **options | change)
        plan.follow(state, same_data=same)
        steps = run(plan, 60)
        numbers = [draw.number for step in steps for pack in step.packs for draw in pack]
        assert min(numbers) > max(used) and len(set(numbers)) == len(numbers)
        order = lambda steps: [i for _, i in sorted(d for step in steps for pack in step.packs for d in pack)]  # noqa: E731
        assert order(steps)[:120] != order(alone)[:120]
        first_epoch = [i for n, i in sorted(d for s in steps for p in s.packs for d in p) if n < min(numbers) + 120]
        assert sorted(first_epoch) == list(range(120)) or len(first_epoch) < 120
        again = Plan(tokens, **options | change)
        again.load_state_dict(json.loads(json.dumps(plan.state_dict())))
        assert run(again, 30) == run(plan, 30)


def test_a_place_that_does_not_say_how_many_numbers_were_given_is_taken_with_room():
    first = Plan([3, 5, 2, 7, 1, 4] * 20, budget=16, packs=2, seed=3)
    used = max(draw.number for step in run(first, 33) for pack in step.packs for draw in pack)
    old = {key: value for key, value in first.state_dict().items() if key != "numbers"}
    plan = Plan([3, 5, 2], budget=16, packs=2, seed=3)
    plan.follow(old, same_data=False)
    assert min(draw.number for pack in plan.next().packs for draw in pack) > used
