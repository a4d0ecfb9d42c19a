"""Which tasks share a job, and in which order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from batchport import Blob, Resources, Task
from batchport.worker.packing import Waiting
from batchport.worker.tracking import Entry


def _entry(task_id: str, cpus: int = 1) -> Entry:
    return Entry(Task(task_id, Blob.of(b"function"), resources=Resources(cpus=cpus)))


def _ids(entries: list[Entry]) -> list[str]:
    return [entry.task.id for entry in entries]


def test_tasks_go_first_come_first_served() -> None:
    waiting = Waiting()
    for number in range(5):
        waiting.add(_entry(f"t{number}"))
    assert _ids(waiting.pack(3)) == ["t0", "t1", "t2"]
    assert _ids(waiting.pack(3)) == ["t3", "t4"]
    assert waiting.pack(3) == []


def test_a_pack_holds_tasks_of_equal_resources_only() -> None:
    waiting = Waiting()
    for number in range(6):
        waiting.add(_entry(f"t{number}", cpus=1 + number % 2))
    assert _ids(waiting.pack(10)) == ["t0", "t2", "t4"]
    assert _ids(waiting.pack(10)) == ["t1", "t3", "t5"]


def test_no_kind_of_task_waits_for_all_of_another() -> None:
    waiting = Waiting()
    for number in range(4):
        waiting.add(_entry(f"small{number}"))
    waiting.add(_entry("large", cpus=8))
    assert _ids(waiting.pack(1)) == ["small0"]
    assert _ids(waiting.pack(1)) == ["large"]


def test_a_task_that_was_sent_before_goes_first() -> None:
    waiting = Waiting()
    waiting.add(_entry("new"))
    waiting.add(_entry("again"), first=True)
    assert _ids(waiting.pack(2)) == ["again", "new"]


def test_extra_resources_are_compared_too() -> None:
    waiting = Waiting()
    for task_id, queue in (("a", "long"), ("b", "short"), ("c", "long")):
        waiting.add(Entry(Task(task_id, Blob.of(b""), resources=Resources(extra={"queue": queue}))))
    assert _ids(waiting.pack(10)) == ["a", "c"]


def test_a_full_pack_need_not_wait_for_more() -> None:
    waiting = Waiting()
    waiting.add(_entry("a"))
    assert not waiting.next_is_full(2)
    waiting.add(_entry("b"))
    assert waiting.next_is_full(2)


@given(
    st.lists(st.tuples(st.integers(1, 3), st.booleans()), max_size=40),
    st.integers(1, 7),
    st.sets(st.integers(0, 39)),
)
def test_every_task_leaves_once_by_a_pack_or_by_a_cancel(
    tasks: list[tuple[int, bool]], most: int, cancelled: set[int]
) -> None:
    waiting = Waiting()
    for number, (cpus, first) in enumerate(tasks):
        waiting.add(_entry(f"t{number}", cpus), first=first)
    gone = [f"t{number}" for number in range(len(tasks)) if number in cancelled and waiting.remove(f"t{number}")]
    assert all(waiting.remove(task_id) is None for task_id in gone)
    left = len(waiting)
    packed: list[str] = []
    while pack := waiting.pack(most):
        assert len(pack) <= most
        assert len({entry.task.resources.cpus for entry in pack}) == 1
        packed += _ids(pack)
    assert left == len(packed)
    assert len(waiting) == 0
    assert sorted(packed + gone) == sorted(f"t{number}" for number in range(len(tasks)))
