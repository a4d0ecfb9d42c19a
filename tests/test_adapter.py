"""The contract's base class: three methods are demanded, every other has its documented default."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest

from batchport.adapter import BatchWorkerAdapterBase
from batchport.jobs import JobSpec, JobStatus, Limits


class Smallest(BatchWorkerAdapterBase):
    """An adapter with nothing but what must be there."""

    limits = Limits(name_length=64, inline_bytes=0)

    def submit_job(self, job: JobSpec) -> str:
        return job.name

    def poll_jobs(self, job_ids: Sequence[str]) -> Iterable[JobStatus]:
        del job_ids
        return ()

    def cancel_job(self, job_id: str) -> None:
        del job_id


@pytest.mark.parametrize("method", ["submit_job", "poll_jobs", "cancel_job"])
def test_an_adapter_without_one_of_the_three_methods_cannot_be_made(method: str) -> None:
    lacking = type("Lacking", (Smallest,), {method: getattr(BatchWorkerAdapterBase, method)})
    with pytest.raises(TypeError, match=f"Can't instantiate abstract class Lacking with .*{method}"):
        lacking()


def test_opening_and_closing_do_nothing_by_default() -> None:
    adapter = Smallest()
    adapter.open("worker")
    adapter.close()
    assert vars(adapter) == {}


def test_an_adapter_that_cannot_look_says_so_by_not_implementing_it() -> None:
    adapter = Smallest()
    with pytest.raises(NotImplementedError):
        adapter.find_jobs(["a"])
    with pytest.raises(NotImplementedError):
        adapter.cancel_jobs(["a"])
    with pytest.raises(NotImplementedError):
        adapter.element_id("a", 0)


def test_there_is_nothing_more_to_tell_and_nothing_to_check_by_default() -> None:
    assert Smallest().inspect_job("a") is None
    assert Smallest().check() == ()
