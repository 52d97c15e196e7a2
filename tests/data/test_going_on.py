"""A plan that goes on with other packs, or with samples that were appended: none lost, none twice."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_plan import draws, mixed, run

from latentvid.data.plan.plan import Plan, Step, Stream
from latentvid.errors import UserError


def taken(plan: Plan, steps: list[Step]) -> list[tuple[int, int]]:
    """What the steps drew and what waits, by number, with the window under way run to its end."""
    steps += run(plan, len(plan.steps_left()))
    return sorted(draws(steps) + [draw[:2] for draw in plan.carried])


def saved(plan: Plan) -> dict:
    return json.loads(json.dumps(plan.state_dict()))


@settings(max_examples=30, deadline=None)
@given(
    stop=st.integers(0, 40), again=st.integers(0, 9), before=st.integers(1, 5), after=st.integers(1, 5),
    budget=st.integers(250, 900), weights=st.sampled_from([[1.0], [1.0, 0.2]]),
)  # fmt: skip
def test_other_packs_lose_nothing(stop, again, before, after, budget, weights):
    streams = [Stream(np.arange(97)[n :: len(weights)], weight) for n, weight in enumerate(weights)]
    old = Plan(mixed(), budget=512, packs=before, seed=3, streams=streams)
    steps = run(old, stop)
    new = Plan(mixed(), budget=budget, packs=after, seed=3, streams=streams)
    new.load_state_dict(saved(old))
    assert new.epoch == old.epoch and new.epochs == old.epochs
    steps += run(new, again)
    twin = Plan(mixed(), budget=budget, packs=after, seed=3, streams=streams)
    twin.load_state_dict(saved(new))  # with packs that are as they were it goes on as ever
    more = run(new, 7)
    assert run(twin, 7) == more and saved(twin) == saved(new)
    assert all(len(step.packs) == after and step.budget == budget and min(map(len, step.packs)) for step in more)
    found = taken(new, steps + more)
    assert [number for number, _ in found] == list(range(len(found)))
    for stream in streams:  # still each once an epoch
        mine = [index for _, index in found if index in stream.index]
        for start in range(0, len(mine) - len(stream.index) + 1, len(stream.index)):
            assert sorted(mine[start : start + len(stream.index)]) == stream.index.tolist()


def parted(counts: list[int], weights: list[float] | None) -> Plan:
    """A plan of parts, each a stream of its own or all one; the same samples first, however many there are."""
    tokens = [np.random.default_rng(n).choice([4, 16, 80], 500)[:count] for n, count in enumerate(counts)]
    starts = np.cumsum([0, *counts])
    streams = weights and [Stream(np.arange(*starts[n : n + 2]), weight, str(n)) for n, weight in enumerate(weights)]
    return Plan(np.concatenate(tokens), budget=256, packs=2, seed=1, streams=streams, parts=counts)


def named(found: list[tuple[int, int]], counts: list[int]) -> list[tuple[int, int, int]]:
    """(number, part, place in it) of each draw."""
    starts = np.cumsum([0, *counts])
    part = [int(np.searchsorted(starts, index, "right")) - 1 for _, index in found]
    return [(number, p, index - int(starts[p])) for p, (number, index) in zip(part, found, strict=True)]


@pytest.mark.parametrize("weights", [None, [1.0, 0.5]], ids=["one", "mixed"])
@pytest.mark.parametrize("stop", [0, 1, 5, 9, 30])
def test_appended_samples_are_drawn_from_the_next_epoch_on(stop, weights):
    """However often it is stopped on the way, and whatever more is appended before that epoch has ended."""
    sizes = [[60, 30], [80, 30], [80, 45], [80, 46]]
    plan, counts = parted(sizes[0], weights), sizes[0]
    found, events = named(draws(run(plan, stop)), counts), []
    for counts in sizes[1:]:
        state = saved(plan)
        with pytest.raises(UserError, match=r"the data set now has \d+: .*data\.may_grow=true takes in clips"):
            parted(counts, weights).load_state_dict(state)
        plan = parted(counts, weights)
        plan.load_state_dict(state, may_grow=True)
        events.append(([source.drawn for source in plan.sources], counts))
        twin = parted(counts, weights)
        twin.load_state_dict(saved(plan), may_grow=True)
        steps = run(plan, 3)
        assert run(twin, 3) == steps and saved(twin) == saved(plan)
        found += named(draws(steps), counts)
    found += named(taken(plan, run(plan, 40)), counts)
    assert sorted(number for number, *_ in found) == list(range(len(found)))  # none lost, none twice
    for stream in range(len(plan.sources)):
        parts = [stream] if weights else [0, 1]
        mine = [sample for _, *sample in sorted(found) if sample[0] in parts]
        epochs, start = 0, 0
        while True:  # an epoch is of the samples that were there when it began
            known = next((c for drawn, c in reversed(events) if drawn[stream] <= start), sizes[0])
            expected = [[part, place] for part in parts for place in range(known[part])]
            if start + len(expected) > len(mine):
                break
            assert sorted(mine[start : start + len(expected)]) == expected
            start, epochs = start + len(expected), epochs + 1
        assert epochs >= 3 and known == counts
        assert plan.sources[stream].place()[0] in (epochs, epochs + 1)
        assert plan.epochs[stream] == pytest.approx(epochs, abs=1.2)


def test_other_samples_are_not_appended_ones():
    plan = parted([60, 30], None)
    run(plan, 5)
    state = saved(plan)
    shrunk = parted([60, 29], None)
    with pytest.raises(UserError, match="began with 90 samples, the data set now has 89: resume with the same data"):
        shrunk.load_state_dict(state, may_grow=True)
    moved = parted([60, 30], None)
    moved.load_state_dict(state, may_grow=True)
    assert saved(moved) == state
    tokens = np.random.default_rng(9).choice([4, 16, 80], 120)
    with pytest.raises(UserError, match="the 90 samples have changed.*takes in those that stand after all"):
        Plan(tokens, budget=256, packs=2, seed=1, parts=[80, 40]).load_state_dict(state, may_grow=True)


def test_a_state_of_before_there_were_parts_is_of_one():
    plan = parted([60], None)
    run(plan, 5)
    state = {key: value for key, value in saved(plan).items() if key != "parts"}
    grown = parted([70], None)
    grown.load_state_dict(state, may_grow=True)
    same = parted([60], None)
    same.load_state_dict(state)
    assert grown.epoch == pytest.approx(same.epoch) and grown.state_dict()["grown"]


def test_windows_that_are_read_together_stay_so_or_it_is_said():
    reads = np.repeat(np.arange(20), 3)
    tokens = np.full(60, 40)
    old = Plan(tokens, budget=256, packs=2, seed=0, reads=reads)
    steps = run(old, 2)
    state = saved(old)
    new = Plan(np.full(66, 40), budget=256, packs=3, seed=0, reads=np.repeat(np.arange(22), 3), parts=[66])
    new.load_state_dict(state, may_grow=True)
    found = taken(new, steps + run(new, 30))
    assert [number for number, _ in found] == list(range(len(found)))
    first = sorted(index for _, index in found[:60])
    assert first == list(range(60)) and sorted(i for _, i in found[60:126]) == list(range(66))
    other = Plan(tokens, budget=512, packs=2, seed=0, reads=np.repeat(np.arange(10), 6))
    with pytest.raises(UserError, match="the windows that are read together now were not .* has 240"):
        other.load_state_dict({**state, "packing": {**state["packing"], "data.tokens_per_pack": 200}})
    with pytest.raises(UserError, match="which windows are read together changed"):
        other.load_state_dict(state)
