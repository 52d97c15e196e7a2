"""Work shared by processes: every piece once, by who is free; an error of one ends all; the dead have heirs."""

import threading
import time

import pytest
from torch.distributed import HashStore

from latentvid.errors import UserError
from latentvid.training.parallel import sharing
from latentvid.training.parallel.sharing import SharedWork


def workers(count: int, world: int = 2) -> list[SharedWork]:
    store, made = HashStore(), []
    for rank in range(world):
        made.append(work := SharedWork("test", count))
        work.store, work.rank, work.world = store, rank, world
    return made


def at_once(*functions) -> list[BaseException | None]:
    errors: list[BaseException | None] = [None] * len(functions)

    def call(place: int) -> None:
        try:
            functions[place]()
        except BaseException as error:
            errors[place] = error

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(functions))]
    [thread.start() for thread in threads]
    [thread.join(60) for thread in threads]
    assert not any(thread.is_alive() for thread in threads)
    return errors


def test_one_process_makes_all():
    with SharedWork("test", 3) as work:
        assert list(work) == [0, 1, 2]


def test_who_is_free_takes_the_next_and_all_leave_when_all_is_done():
    made, taken, first = {0: [], 1: []}, threading.Event(), threading.Event()

    def work(worker: SharedWork) -> None:
        assert worker.rank == 0 or taken.wait(30)
        with worker:
            for number in worker:
                made[worker.rank].append(number)
                if worker.rank == 0:
                    taken.set()
                    first.wait(30)  # one long piece, as long as the other has work
                elif sum(map(len, made.values())) == 9:
                    first.set()
        assert sum(map(len, made.values())) == 9

    one, other = workers(9)
    assert at_once(lambda: work(one), lambda: work(other)) == [None, None]
    assert sorted(made[0] + made[1]) == list(range(9)) and len(made[0]) == 1


def test_an_error_of_one_ends_the_others_with_its_message():
    started = threading.Barrier(2)

    def fails(worker: SharedWork) -> None:
        with worker:
            for _ in worker:
                started.wait(30)
                raise UserError("the disk of clips is full")

    def works(worker: SharedWork) -> None:
        with worker:
            for number in worker:
                if number < 2:
                    started.wait(30)
                time.sleep(0.02)

    one, other = workers(500)
    errors = at_once(lambda: works(one), lambda: fails(other))
    assert [str(error) for error in errors] == ["the disk of clips is full"] * 2
    assert all(isinstance(error, UserError) for error in errors)


def test_the_piece_of_a_dead_process_is_made_by_another(monkeypatch):
    monkeypatch.setattr(sharing, "SILENT_S", 0.3)
    monkeypatch.setattr(sharing, "BEAT_S", 0.05)
    one, dead = workers(4)
    assert dead._take(0, None)  # and never beats
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one, "world", 2)
        with one:
            assert list(one) == [1, 2, 3, 0]
