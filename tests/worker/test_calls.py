"""What the worker says of an adapter that does not keep the contract, and how it calls one that does."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from batchport import BatchWorker, BatchWorkerAdapterBase, JobSpec, JobStatus, Limits, Outcome, UsageError
from batchport.worker.calls import Backoff, Calls, UnclearAnswerError


class House(BatchWorkerAdapterBase):
    """The smallest adapter there is."""

    limits = Limits(name_length=64, inline_bytes=0)

    def submit_job(self, job: JobSpec) -> str:
        return job.name

    def poll_jobs(self, job_ids: Sequence[str]) -> Iterable[JobStatus] | Awaitable[Iterable[JobStatus]]:
        return ()

    def cancel_job(self, job_id: str) -> None:
        return


async def _nowhere(_: Outcome) -> None:
    return


def _worker(adapter: BatchWorkerAdapterBase, tmp_path: Path, **options: Any) -> BatchWorker:
    return BatchWorker(adapter, str(tmp_path), "w", _nowhere, **options)


def test_a_hook_with_a_wrong_signature_is_refused_at_once(tmp_path: Path) -> None:
    class Wrong(House):
        def poll_jobs(self) -> Iterable[JobStatus]:  # type: ignore[override]
            return ()

    with pytest.raises(UsageError) as caught:
        _worker(Wrong(), tmp_path)
    assert str(caught.value) == (
        "Wrong.poll_jobs() -> 'Iterable[JobStatus]' does not take what the worker passes; "
        "write: def poll_jobs(self, job_ids)"
    )


def test_an_optional_hook_with_a_wrong_signature_is_refused_too(tmp_path: Path) -> None:
    class Wrong(House):
        def find_jobs(self, name: str, state: str) -> list[tuple[str, str]]:  # type: ignore[override]
            return []

    with pytest.raises(UsageError, match=r"write: def find_jobs\(self, names\)"):
        _worker(Wrong(), tmp_path)


def test_an_async_generator_is_refused_at_once(tmp_path: Path) -> None:
    class Wrong(House):
        async def poll_jobs(self, job_ids: Sequence[str]) -> AsyncIterator[JobStatus]:  # type: ignore[override]
            for _ in job_ids:
                yield  # type: ignore[misc]

    with pytest.raises(UsageError) as caught:
        _worker(Wrong(), tmp_path)
    assert str(caught.value) == (
        "Wrong.poll_jobs is an async generator; return a list instead of yielding, "
        "in an async def poll_jobs(self, job_ids)"
    )


async def test_an_adapter_without_limits_is_refused_when_it_is_open(tmp_path: Path) -> None:
    class Wrong(House):
        limits = None  # type: ignore[assignment]

    with pytest.raises(UsageError) as caught:
        async with _worker(Wrong(), tmp_path):
            pass
    assert str(caught.value) == (
        "Wrong.limits is None after open(): set it to a batchport.Limits, in the class or in open()"
    )


async def test_an_adapter_with_arrays_and_no_names_for_their_elements_is_refused_before_any_job(tmp_path: Path) -> None:
    class Wrong(House):
        limits = Limits(name_length=64, inline_bytes=0, array_size=10, array_index="INDEX")

    with pytest.raises(UsageError) as caught:
        async with _worker(Wrong(), tmp_path):
            pass
    assert str(caught.value) == (
        "Wrong has limits.array_size=10 and no element_id: "
        "implement it, to say how the backend names one element, or set array_size=1"
    )


async def test_after_a_refusal_the_name_is_free_again(tmp_path: Path) -> None:
    class Wrong(House):
        limits = None  # type: ignore[assignment]

    for _ in range(2):
        with pytest.raises(UsageError, match=r"Wrong\.limits is None"):
            async with _worker(Wrong(), tmp_path):
                pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_jobs": 0}, "max_jobs=0: must be at least 1"),
        ({"tasks_per_job": 0}, "tasks_per_job=0: must be at least 1"),
        ({"retries": -1}, "retries=-1: must be at least 0"),
        ({"waiting": 0}, "waiting=0: must be at least 1"),
        ({"code": ["mymodule"]}, "code holds 'mymodule': give zips of modules, each as a batchport.Blob"),
        ({"launcher": "env X=1"}, "launcher='env X=1': give its words one by one, such as ['env', 'X=1']"),
        (
            {"python": "/opt/my python/bin/python3"},
            (
                "python '/opt/my python/bin/python3' holds a character that would need quoting at some backend; "
                "use only A-Z a-z 0-9 _ . / : = + , @ % -"
            ),
        ),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        _worker(House(), tmp_path, **options)
    assert str(caught.value) == message


async def test_a_call_that_does_not_answer_is_left_behind() -> None:
    stuck = threading.Event()

    class Stuck(House):
        def submit_job(self, job: JobSpec) -> str:
            if job.name == "stuck":
                stuck.wait(20)
            return "7"

    calls = Calls(Stuck(), deadline_s=0.2)
    await calls.open("w")
    job = JobSpec("stuck", "", ("true",), {}, resources=None)  # type: ignore[arg-type]
    with pytest.raises(UnclearAnswerError) as caught:
        await calls.submit_job(job)
    assert str(caught.value) == "submit_job gave no answer within 0.2 s"
    other = JobSpec("other", "", ("true",), {}, resources=None)  # type: ignore[arg-type]
    assert await calls.submit_job(other) == "7", "the call that hangs holds the next one up"
    stuck.set()


async def test_a_call_has_all_of_its_deadline_however_long_it_waited_for_its_turn() -> None:
    class Slow(House):
        def poll_jobs(self, job_ids: Sequence[str]) -> Iterable[JobStatus]:
            time.sleep(0.3)
            return []

    calls = Calls(Slow(), deadline_s=0.7)  # longer than one call, and shorter than three, one after the other
    assert await asyncio.gather(*(calls.poll_jobs(["1"]) for _ in range(3))) == [[], [], []]


async def test_the_adapters_own_timeout_is_told_as_it_is() -> None:
    class Slow(House):
        async def poll_jobs(self, job_ids: Sequence[str]) -> Iterable[JobStatus]:
            raise TimeoutError("squeue took too long")

    with pytest.raises(TimeoutError, match="squeue took too long"):
        await Calls(Slow(), deadline_s=60).poll_jobs(["1"])


async def test_plain_calls_run_one_at_a_time_unless_the_limits_say_more() -> None:
    running, most = 0, 0
    lock = threading.Lock()

    class Counting(House):
        def poll_jobs(self, job_ids: Sequence[str]) -> Iterable[JobStatus]:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.05)
            with lock:
                running -= 1
            return ()

    for parallel in (1, 3):
        most = 0
        adapter = Counting()
        adapter.limits = Limits(name_length=64, inline_bytes=0, parallel_calls=parallel)
        calls = Calls(adapter, deadline_s=20)
        await calls.open("w")
        await asyncio.gather(*(calls.poll_jobs(["1"]) for _ in range(6)))
        assert most == parallel


async def test_a_generator_is_run_in_the_thread_of_its_call() -> None:
    threads: list[str] = []

    class Lazy(House):
        def poll_jobs(self, job_ids: Sequence[str]) -> Iterable[JobStatus]:
            threads.append(threading.current_thread().name)
            yield from ()

    assert await Calls(Lazy(), deadline_s=20).poll_jobs(["1"]) == []
    assert threads == ["batchport-adapter"]


@pytest.mark.parametrize("answer", [None, "1", [("1", "RUNNING")]])
async def test_a_poll_that_returns_no_statuses_is_a_failed_poll(answer: Any) -> None:
    class Wrong(House):
        def poll_jobs(self, job_ids: Sequence[str]) -> Iterable[JobStatus]:
            return answer  # type: ignore[no-any-return]

    with pytest.raises(UnclearAnswerError, match="where JobStatus items belong"):
        await Calls(Wrong(), deadline_s=20).poll_jobs(["1"])


async def test_jobs_are_cancelled_in_one_call_where_the_adapter_can() -> None:
    class Many(House):
        cancelled: list[list[str]] = []  # noqa: RUF012 - one list is all this test needs

        async def cancel_jobs(self, job_ids: Sequence[str]) -> None:
            self.cancelled.append(list(job_ids))

    calls = Calls(Many(), deadline_s=20)
    await calls.cancel_jobs(["1", "2"])
    assert Many.cancelled == [["1", "2"]]
    assert calls.counts == {"cancel_jobs": 1}


async def test_without_cancel_jobs_each_is_cancelled_by_itself() -> None:
    calls = Calls(House(), deadline_s=20)
    await calls.cancel_jobs(["1", "2"])
    assert calls.counts == {"cancel_job": 2}


def test_backoff_doubles_to_its_limit_and_starts_again_after_a_success() -> None:
    backoff = Backoff(first=1, most=8)
    delays = [backoff.next() for _ in range(6)]
    steps = [1, 2, 4, 8, 8, 8]
    assert all(step / 2 <= delay <= step for delay, step in zip(delays, steps, strict=True))
    backoff.reset()
    assert backoff.next() <= 1


def test_backoff_survives_a_very_long_outage() -> None:
    backoff = Backoff()
    delay: Callable[[], float] = backoff.next
    assert all(delay() <= 60 for _ in range(5000))
