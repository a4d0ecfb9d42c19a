"""Cases about native arrays: each element is a job of its own, and its worker can tell it from the others."""

from __future__ import annotations

import asyncio

import pytest

from batchport.errors import Reason
from batchport.jobs import JobState
from batchport.testing import functions
from batchport.testing.bench import Bench
from batchport.testing.cases.base import Cases
from batchport.testing.host import Host, run

__all__ = ["ArrayCases"]

MOST = 20
"""The largest array that a case submits."""


class ArrayCases(Cases):
    """An array runs each element once, tells it its index, and has one fate for each. Elements count from 0 here."""

    @pytest.fixture(autouse=True)
    def _has_arrays(self, request: pytest.FixtureRequest) -> None:
        if request.function.__name__ in vars(ArrayCases):
            bench: Bench = request.getfixturevalue("bench")
            if bench.desk.adapter.limits.array_size == 1:
                pytest.skip("limits.array_size is 1: this backend has no arrays")

    def test_each_element_runs_once(self, bench: Bench) -> None:
        """Each element of an array runs the whole command once, with the job's environment and an index of its own."""
        job, status = bench.ended("mark=run", "sleep=0.2", "mark=end", size=_some(bench), env={"PROBE_SHORT": "1"})
        runs, ends = job.marks.read("run"), job.marks.read("end")
        indices = sorted(mark.env.get("PROBE_INDEX", "") for mark in runs)
        assert len(indices) == len(set(indices)) == job.spec.size, (
            f"{job.spec.size} elements; those that ran: {indices}"
        )
        assert len(ends) == job.spec.size, f"all began, {len(ends)} came to their end; the array is {status}"
        assert {mark.env.get("PROBE_SHORT") for mark in runs} == {"1"}

    def test_indices_count_from_array_base(self, bench: Bench) -> None:
        """`limits.array_index` is `limits.array_base` in the first element, and one more in each that follows."""
        job, _ = bench.ended("mark=run", size=_some(bench))
        base = bench.desk.adapter.limits.array_base
        indices = sorted(int(mark.env["PROBE_INDEX"] or -1) for mark in job.marks.read("run"))
        assert indices == list(range(base, base + job.spec.size))

    def test_an_array_of_full_size_ends(self, bench: Bench) -> None:
        """An array of `limits.array_size` elements, or of 20, runs to its end, each element once."""
        size = min(bench.desk.adapter.limits.array_size, MOST)
        job, status = bench.ended("mark=run", size=size)
        assert status.state is JobState.SUCCEEDED, f"all {size} elements exited with 0: {status}"
        assert len(job.marks.read("run")) == size

    def test_elements_are_reported_by_their_ids(self, bench: Bench) -> None:
        """`element_id` names each element as poll_jobs does: asked for these ids, it reports each by its own."""
        job, _ = bench.ended("mark=run", size=_some(bench))
        ids = bench.element_ids(job)
        assert len({*ids, job.id}) == job.spec.size + 1, f"the array is {job.id!r}, its elements are {ids}"
        for each in ids:
            statuses = bench.desk.poll([each])
            assert list(statuses) == [each], f"asked for the element {each!r}, poll_jobs reports {statuses}"
            assert statuses[each].name in {None, job.spec.name}, "an element has its array's name, or none"

    def test_elements_fates_are_told_apart(self, bench: Bench) -> None:
        """Of three elements the one that exits with 3 is FAILED with exit code 3, and the others are SUCCEEDED."""
        job = bench.submit("mark=run", f"only={_index(bench, 1)}", "exit=3", size=_some(bench))
        fates = bench.fates(job)
        states = [status.state for status in fates]
        wanted = [JobState.SUCCEEDED, JobState.FAILED, JobState.SUCCEEDED][: job.spec.size]
        assert states == wanted, f"element 1 exited with 3, the others with 0: {fates}"
        more = bench.desk.inspect(fates[1].job_id) if fates[1].exit_code is None else None
        code = more.exit_code if more else fates[1].exit_code
        assert code == 3, f"element 1 exited with 3, and the exit code reported is {code}: {fates[1]}"  # noqa: PLR2004 - as the probe was told

    def test_an_array_is_over_when_its_last_element_is(self, bench: Bench) -> None:
        """An array is not reported as over while one element's process is there, though the others have ended."""
        last = _some(bench) - 1
        job = bench.submit("mark=run", f"only={_index(bench, last)}", "hold", "mark=end", size=last + 1)
        mark = bench.marked(job, "run", last)
        for other in range(last):
            bench.gone(job.marks, bench.marked(job, "run", other))
        for _ in range(3):
            for status in (bench.status(job), bench.elements(job)[last]):
                assert status is None or not status.state.is_final, f"process {mark.pid} is there: {status}"
        job.marks.release()
        assert bench.verdict(job).state is JobState.SUCCEEDED
        assert job.marks.read("end"), f"array {job.id} is reported as over before it was"

    def test_cancelling_one_element_leaves_the_others(self, bench: Bench) -> None:
        """A cancelled element's process is soon gone, and the others come to their ends."""
        if not bench.desk.adapter.limits.element_cancel:
            pytest.skip("limits.element_cancel is False: the backend cancels arrays as a whole")
        job = bench.submit("mark=run", "hold", "mark=end", size=_some(bench))
        mark = bench.marked(job, "run")
        cancelled = int(mark.env["PROBE_INDEX"]) - bench.desk.adapter.limits.array_base
        bench.desk.cancel(bench.element_ids(job)[cancelled])
        bench.gone(job.marks, mark)
        job.marks.release()
        states = [status.state for status in bench.fates(job)]
        ends = {mark.env["PROBE_INDEX"] for mark in job.marks.read("end")}
        others = [index for index in range(job.spec.size) if index != cancelled]
        told = f"element {cancelled} was cancelled, and no other"
        assert ends == {_index(bench, index) for index in others}, f"{told}; those that came to their end: {ends}"
        assert states[cancelled] in {JobState.CANCELLED, JobState.FAILED}, f"{told}: {states}"
        assert {states[index] for index in others} == {JobState.SUCCEEDED}, f"{told}: {states}"

    def test_cancelling_an_array_ends_all_its_elements(self, bench: Bench) -> None:
        """When an array is cancelled, elements that run are soon gone, and those that wait never run."""
        job = bench.submit("mark=run", "hold", "mark=end", size=min(bench.desk.adapter.limits.array_size, 5))
        bench.marked(job, "run")
        bench.desk.cancel(job.id)
        bench.ended_without_success(job)
        runs = job.marks.read("run")
        for mark in runs:
            bench.gone(job.marks, mark)
        job.marks.release()
        for status in bench.elements(job):
            assert status is None or status.state is not JobState.SUCCEEDED, f"its array was cancelled: {status}"
        assert len(job.marks.read("run")) == len(runs), "an element ran after its array was over"
        assert not job.marks.read("end")

    def test_an_array_is_found_once_by_its_name(self, bench: Bench) -> None:
        """find_jobs gives an array once, by its own id, while its elements run and after they have ended."""
        if not bench.desk.has("find_jobs"):
            pytest.skip("find_jobs is not overridden: the worker cannot ask this backend for a job by its name")
        job = bench.submit("mark=run", "hold", size=_some(bench))
        bench.marked(job, "run")
        for _ in range(2):
            bench.until(f"find_jobs to find array {job.id}", lambda: bench.desk.find([job.spec.name]))
            assert bench.desk.find([job.spec.name]) == [(job.spec.name, job.id)]
            job.marks.release()
            bench.verdict(job)

    def test_the_log_of_a_failed_element_is_evidence(self, bench: Bench) -> None:
        """inspect_job of an element tells its own state, and has the last line that it printed in its evidence."""
        if not bench.desk.has("inspect_job"):
            pytest.skip("inspect_job is not overridden: the backend has no more to tell than poll_jobs does")
        word = f"last-words-{bench.marks().key}"
        steps = ("mark=run", f"only={_index(bench, 1)}", f"print={word}", "exit=3")
        job, _ = bench.ended(*steps, size=_some(bench))
        element = bench.element_ids(job)[1]
        status = bench.until(
            f"inspect_job of element {element} to have the line {word!r}, which it printed last, in its evidence",
            lambda: found if (found := bench.desk.inspect(element)) and word in found.evidence else None,
            lambda: bench.desk.inspect(element),
        )
        assert (status.job_id, status.state) == (element, JobState.FAILED)

    def test_a_map_runs_as_an_array(self, bench: Bench) -> None:
        """Twenty tasks run in fewer jobs than tasks, and each has its own result, once."""

        async def case(host: Host) -> None:
            tasks = [await host.call(functions.add, number, number) for number in range(20)]
            assert [await host.result(task) for task in tasks] == [2 * number for number in range(20)]
            await host.worker.drain()
            assert sorted(each.task_id for each in host.outcomes) == sorted(tasks)
            assert host.worker.counts.jobs < len(tasks), f"no array was made: {host.worker.counts}"

        run(case, bench)

    def test_packs_share_an_array(self, bench: Bench) -> None:
        """With tasks_per_job=3 seven tasks are fewer jobs than packs; each has its outcome, that which raises too."""

        async def case(host: Host) -> None:
            bad = await host.call(functions.raise_lookup_error)
            tasks = [await host.call(functions.add, number) for number in range(6)]
            assert [await host.result(task) for task in tasks] == [*range(6)]
            failure = await host.failure(bad)
            assert failure.reason is Reason.USER_ERROR, f"it raised LookupError: {failure}"
            assert host.worker.counts.jobs < 7 / 3, f"no packs were put into one array: {host.worker.counts}"

        run(case, bench, tasks_per_job=3)

    def test_one_task_of_a_pack_in_an_array_is_cancelled(self, bench: Bench) -> None:
        """A task that is cancelled while it runs in one of an array's packs ends, and all others have their results."""

        async def case(host: Host) -> None:
            marks = bench.marks()
            task = await host.call(functions.hold, marks.url, marks.key)
            others = [await host.call(functions.add, number) for number in range(3)]
            mark = await host.marked(task, marks)
            assert await host.worker.cancel(task)
            failure = await host.failure(task)
            assert failure.reason is Reason.CANCELLED, f"it was cancelled: {failure}"
            await asyncio.to_thread(bench.gone, marks, mark)
            assert [await host.result(each) for each in others] == [*range(3)]
            assert not marks.read("end")

        run(case, bench, tasks_per_job=2)

    def test_one_task_of_a_map_is_cancelled(self, bench: Bench) -> None:
        """A task that is cancelled while its element runs is CANCELLED and soon gone, and the others have results."""

        async def case(host: Host) -> None:
            marks = [bench.marks() for _ in range(3)]
            tasks = [await host.call(functions.hold, each.url, each.key) for each in marks]
            await host.until("one of three tasks to leave its mark", lambda: any(each.read("run") for each in marks))
            index = next(index for index, each in enumerate(marks) if each.read("run"))
            assert await host.worker.cancel(tasks[index])
            await asyncio.to_thread(bench.gone, marks[index], marks[index].read("run")[0])
            for each in marks:
                each.release()
            failure = await host.failure(tasks[index])
            assert failure.reason is Reason.CANCELLED, f"it was cancelled: {failure}"
            for task in tasks[:index] + tasks[index + 1 :]:
                await host.result(task)
            assert [len(each.read("end")) for each in marks] == [int(other != index) for other in range(3)]

        run(case, bench)

    def test_a_task_that_dies_in_an_array_leaves_the_others(self, bench: Bench) -> None:
        """A function that ends its process in one element is a RUNNER_CRASH there, and the others have results."""

        async def case(host: Host) -> None:
            first, bad, last = [await host.call(*each) for each in (_ADD_1, (functions.die, 77), _ADD_1)]
            failure = await host.failure(bad)
            assert failure.reason is Reason.RUNNER_CRASH, f"its process is dead: {failure}"
            assert [await host.result(task) for task in (first, last)] == [1, 1]

        run(case, bench)


_ADD_1 = (functions.add, 1)


def _some(bench: Bench) -> int:
    """Return a size for an array: three, or what the backend allows."""
    return min(bench.desk.adapter.limits.array_size, 3)


def _index(bench: Bench, index: int) -> str:
    """Return what the backend's variable holds in this element."""
    return str(bench.desk.adapter.limits.array_base + index)
