"""Cases about real work: functions run in the backend's jobs, through the worker and the runner."""

from __future__ import annotations

import asyncio
import math
import pickle
import secrets
import time

from batchport.errors import Reason
from batchport.jobs import Resources
from batchport.testing import functions
from batchport.testing.bench import Bench
from batchport.testing.cases.base import Cases
from batchport.testing.desk import Desk
from batchport.testing.host import POLL_S, Host, run
from batchport.testing.marks import Mark, Marks

__all__ = ["WorkingCases"]

LARGE = 2_000_000
"""Bytes that no backend takes inline."""


class WorkingCases(Cases):
    """Whatever comes of a function, it comes back to the host as an outcome."""

    def test_a_function_gives_its_result(self, bench: Bench) -> None:
        """A function runs in a job, and its result comes back."""

        async def case(host: Host) -> None:
            assert await host.result(await host.call(functions.add, 20, 22)) == 20 + 22

        run(case, bench)

    def test_an_exception_comes_back_as_itself(self, bench: Bench) -> None:
        """An exception of the function comes back as itself, with where it was raised as evidence."""

        async def case(host: Host) -> None:
            failure = await host.failure(await host.call(functions.raise_lookup_error, "no such thing", 7))
            assert failure.reason is Reason.USER_ERROR, f"it raised LookupError: {failure}"
            error = pickle.loads(failure.exception or b"N.")
            assert (type(error), error.args) == (LookupError, ("no such thing", 7))
            assert "raise_lookup_error" in failure.evidence, "the evidence must have the remote traceback"

        run(case, bench)

    def test_large_values_travel_through_the_store(self, bench: Bench) -> None:
        """An argument and a result that are too large for the backend travel through the store."""
        data = secrets.token_bytes(LARGE)

        async def case(host: Host) -> None:
            assert await host.result(await host.call(functions.turn, data)) == data[::-1]

        run(case, bench)

    def test_many_tasks_each_have_one_outcome(self, bench: Bench) -> None:
        """Of many tasks that run at once, each has its own result, once, for few calls to the backend."""

        async def case(host: Host) -> None:
            began = time.monotonic()
            shared = secrets.token_bytes(LARGE // 10)
            first = await host.call(functions.turn, shared)
            tasks = [await host.call(functions.add, number, number) for number in range(15)]
            assert [await host.result(task) for task in tasks] == [2 * number for number in range(15)]
            assert await host.result(first) == shared[::-1]
            await host.worker.drain()
            assert sorted(each.task_id for each in host.outcomes) == sorted((first, *tasks))
            counts = host.worker.counts
            assert counts.backend_calls["submit_job"] == counts.jobs <= len(host.outcomes)
            rounds = (time.monotonic() - began) / POLL_S + 2
            calls = math.ceil(counts.jobs / (host.adapter.limits.poll_batch or counts.jobs))
            assert counts.backend_calls["poll_jobs"] <= rounds * calls, f"{counts} after {rounds:.0f} rounds of polls"

        run(case, bench)

    def test_tasks_share_jobs(self, bench: Bench) -> None:
        """With tasks_per_job=5 ten tasks, one of which raises, take fewer jobs, and each has its own outcome."""

        async def case(host: Host) -> None:
            tasks = [await host.call(functions.add, number) for number in range(9)]
            bad = await host.call(functions.raise_lookup_error)
            assert [await host.result(task) for task in tasks] == [*range(9)]
            failure = await host.failure(bad)
            assert failure.reason is Reason.USER_ERROR, f"it raised LookupError: {failure}"
            assert host.worker.counts.jobs < len(host.outcomes)

        run(case, bench, tasks_per_job=5)

    def test_a_task_that_dies_leaves_evidence(self, bench: Bench) -> None:
        """A function that ends its process without an answer is a RUNNER_CRASH, with evidence."""

        async def case(host: Host) -> None:
            failure = await host.failure(await host.call(functions.die, 77))
            assert failure.reason is Reason.RUNNER_CRASH, f"its process is dead: {failure}"
            assert "77" in str(failure), f"it exited with 77, and nothing says so: {failure}"

        run(case, bench)

    def test_a_cancelled_task_ends(self, bench: Bench) -> None:
        """A task that is cancelled while it runs is CANCELLED, and its process is soon gone."""

        async def case(host: Host) -> None:
            task, marks, mark = await _hold(host, bench)
            assert await host.worker.cancel(task)
            failure = await host.failure(task)
            assert failure.reason is Reason.CANCELLED, f"it was cancelled: {failure}"
            await asyncio.to_thread(bench.gone, marks, mark)
            assert not marks.read("end")

        run(case, bench)

    def test_a_job_ended_by_others_has_an_outcome(self, bench: Bench) -> None:
        """A task whose job somebody else cancels at the backend fails, in words, and does not hang."""

        async def case(host: Host) -> None:
            task, marks, mark = await _hold(host, bench)
            await asyncio.to_thread(_cancel_all, bench, host)
            await asyncio.to_thread(bench.gone, marks, mark)
            failure = await host.failure(task)
            assert failure.reason is not Reason.USER_ERROR, f"it is not the function's fault: {failure}"
            assert failure.message

        run(case, bench)

    def test_a_task_s_time_limit_is_kept(self, bench: Bench) -> None:
        """A task that is still there at its time limit is ended, and is a TIMEOUT."""

        async def case(host: Host) -> None:
            task, marks, mark = await _hold(host, bench, Resources(time_limit_s=2))
            failure = await host.failure(task)
            assert failure.reason is Reason.TIMEOUT, f"it met its time limit: {failure}"
            await asyncio.to_thread(bench.gone, marks, mark)

        run(case, bench)

    def test_what_a_task_prints_is_kept(self, bench: Bench) -> None:
        """What a function prints is in its outcome."""

        async def case(host: Host) -> None:
            outcome = await host.outcome(await host.call(functions.say, "it was a bright cold day"))
            assert "it was a bright cold day" in outcome.output

        run(case, bench)

    def test_nothing_is_left_in_the_store(self, bench: Bench) -> None:
        """Once all outcomes are delivered and the worker has ended, its tasks have nothing left in the store."""
        hosts = []

        async def case(host: Host) -> None:
            hosts.append(host)
            tasks = [await host.call(functions.add, 1), await host.call(functions.turn, bytes(LARGE))]
            tasks += [await host.call(functions.raise_lookup_error), await host.call(functions.die, 1)]
            for task in tasks:
                await host.outcome(task)

        run(case, bench)
        assert hosts[0].left_in_store() == []


async def _hold(host: Host, bench: Bench, resources: Resources | None = None) -> tuple[str, Marks, Mark]:
    """Send a task that holds; return once it runs, with its marks and that of its process."""
    marks = bench.marks()
    task = await host.call(functions.hold, marks.url, marks.key, resources=resources)
    return task, marks, await host.marked(task, marks)


def _cancel_all(bench: Bench, host: Host) -> None:
    with Desk(bench.backend.adapter(), bench.patience_s, host.name) as other:
        other.cancel(*host.job_ids())
