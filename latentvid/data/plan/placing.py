"""Putting samples into packs that cost nearly the same."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def place(
    order: Sequence[int], tokens: Sequence[int], cost: Sequence[float], *, packs: int, budget: int
) -> tuple[list[list[int]], list[int]]:
    """Puts each of `order` (places in `tokens` and `cost`) into the pack that costs least so far and has room for it.

    Returns the packs, and those for which none had room. Costs are above 0, so no pack gets a second sample while
    another is empty. O(log packs) a sample when `order` goes from large to small.
    """
    filled: list[list[int]] = [[] for _ in range(packs)]
    room, spent = [budget] * packs, [0.0] * packs
    cheapest = [(0.0, p) for p in range(packs)]  # a heap
    full: list[tuple[int, int]] = []  # a heap by room of the packs that had none for a sample
    left = []
    for i in order:
        need = tokens[i]
        while full and -full[0][0] >= need:
            p = heapq.heappop(full)[1]
            heapq.heappush(cheapest, (spent[p], p))
        while cheapest and room[cheapest[0][1]] < need:
            p = heapq.heappop(cheapest)[1]
            heapq.heappush(full, (-room[p], p))
        if not cheapest:
            left.append(i)
            continue
        p = cheapest[0][1]
        filled[p].append(i)
        room[p] -= need
        spent[p] += cost[i]
        heapq.heapreplace(cheapest, (spent[p], p))
    return filled, left
