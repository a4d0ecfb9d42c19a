"""What the author of an adapter sees of the conformance suite."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from tests.testing.conftest import SUITE

from batchport.errors import UsageError
from batchport.testing import BackendConformance

BLANK = """
from collections.abc import Iterable, Sequence
from batchport import BatchWorkerAdapterBase, JobSpec, JobStatus, Limits
from batchport.backends.local import Options

class Adapter(BatchWorkerAdapterBase):
    options_type = Options
    limits = Limits(name_length=64, inline_bytes=0)

    def __init__(self, options: Options) -> None:
        self.options = options

    def submit_job(self, job: JobSpec) -> str:
        raise NotImplementedError("implement submit_job")

    def poll_jobs(self, job_ids: Sequence[str]) -> Iterable[JobStatus]:
        raise NotImplementedError("implement poll_jobs")

    async def cancel_job(self, job_id: str) -> None:
        raise NotImplementedError("implement cancel_job")
"""
CASES = sorted(name for name in dir(BackendConformance) if name.startswith("test_"))


def test_a_blank_adapter_fails_with_three_messages_and_nothing_else(run_suite: Callable[..., str]) -> None:
    printed = run_suite(BLANK)
    assert f"3 failed, {len(CASES) - 3} skipped in" in printed
    for method, line in (("submit_job", 13), ("poll_jobs", 16), ("cancel_job", 19)):
        words = (
            f"implement {method}\n"
            f"  in adapter.py, line {line}: Adapter.{method}\n"
            "  Its docstring says what it owes. "
            f"Read on: docs/writing-a-backend.md#{method} in batchport's repository.\n"
        )
        assert words in printed
        assert f"test_{method}_is_implemented - Failed: implement {method}" in printed
    assert "Traceback" not in printed
    assert f"not run here: {len(CASES) - 3} of {len(CASES)} cases\n" in printed
    assert f"- waits for submit_job, poll_jobs, cancel_job\n    all other {len(CASES) - 3} cases\n" in printed


def test_an_adapter_that_lacks_one_method_is_told_only_of_that(run_suite: Callable[..., str]) -> None:
    printed = run_suite(
        BLANK.replace('raise NotImplementedError("implement submit_job")', 'return "1"').replace(
            'raise NotImplementedError("implement poll_jobs")', "return []"
        )
    )
    assert f"1 failed, 2 passed, {len(CASES) - 3} skipped in" in printed
    assert "implement cancel_job\n  in adapter.py, line 19: Adapter.cancel_job\n" in printed
    assert "- waits for cancel_job\n" in printed


def test_an_adapter_that_cannot_be_opened_fails_one_case_with_its_own_words(run_suite: Callable[..., str]) -> None:
    opening = """
    def open(self, worker: str) -> None:
        raise BackendUnusableError("no such queue: night")
"""
    printed = run_suite("from batchport import BackendUnusableError\n" + BLANK + opening)
    assert f"1 failed, {len(CASES) - 1} skipped in" in printed
    assert "test_the_adapter_opens - batchport.errors.BackendUnusableError: no such queue: night" in printed
    assert "- waits for open, which raised BackendUnusableError: no such queue: night\n" in printed


def test_the_summary_names_the_cases_that_were_not_run_and_why(run_suite: Callable[..., str]) -> None:
    minimal = """
from batchport.backends.local import LocalAdapter, Options
from batchport import BatchWorkerAdapterBase, Limits

class Adapter(LocalAdapter):
    limits = Limits(name_length=64, inline_bytes=0)
    find_jobs = BatchWorkerAdapterBase.find_jobs
    inspect_job = BatchWorkerAdapterBase.inspect_job
"""
    printed = run_suite(minimal, "-k", "found or inspect or refused or test_a_job_runs_once")
    summary = printed[printed.index("conformance: test_conformance.py::TestConformance") :]
    assert "not run here: 7 of 8 cases\n" in summary
    assert (
        "- Backend.refused is None: it names no resources that the backend refuses\n"
        "    test_resources_it_cannot_give_are_refused_in_words\n"
        "- find_jobs is not overridden: the worker cannot ask this backend for a job by its name\n"
        "    test_a_living_job_is_found_by_its_name, test_an_ended_job_is_found_by_its_name\n"
        "- inspect_job is not overridden: the backend has no more to tell than poll_jobs does\n"
        "    test_inspecting_agrees_with_polling, test_a_living_job_can_be_inspected,\n"
        "    test_inspecting_an_unknown_job_tells_nothing\n"
        "- limits.array_size is 1: this backend has no arrays\n"
        "    test_an_array_is_found_once_by_its_name\n"
    ) in summary


def test_a_case_that_is_newer_than_the_adapter_s_contract_is_reported_and_not_failed(
    run_suite: Callable[..., str],
) -> None:
    adapter = (
        "from batchport.backends.local import LocalAdapter, Options\nclass Adapter(LocalAdapter):\n    contract = 1\n"
    )
    newer = """
    from batchport.testing.cases.base import since

    @since(2)
    def test_jobs_are_pink(self, bench) -> None:
        raise AssertionError("they are not")

    @since(1)
    def test_jobs_are_grey(self, bench) -> None:
        pass
"""
    printed = run_suite(adapter, "-k", "test_jobs_are", suite=SUITE + newer)
    assert "1 passed, 1 skipped" in printed
    assert (
        "not run here: 1 of 2 cases\n- holds since contract 2; this adapter was written for 1\n    test_jobs_are_pink\n"
        in (printed)
    )


def test_a_failed_assert_of_the_suite_shows_its_values(run_suite: Callable[..., str]) -> None:
    broken = """
from dataclasses import replace
from batchport.backends.local import LocalAdapter, Options

class Adapter(LocalAdapter):
    def submit_job(self, job):
        return super().submit_job(replace(job, env={"PROBE_SHORT": "2"}))
"""
    printed = run_suite(broken, "-k", "test_the_environment_arrives_unchanged")
    assert "{'PROBE_SHORT': '2'} != {'PROBE_SHORT': '1'}" in printed


def test_an_async_adapter_is_driven_as_well(run_suite: Callable[..., str]) -> None:
    turned = """
from batchport import BatchWorkerAdapterBase
from batchport.backends.local import LocalAdapter, Options

def turned(name):
    async def method(self, *args):
        return getattr(LocalAdapter, name)(self, *args)
    return method

METHODS = ("open", "submit_job", "poll_jobs", "cancel_job", "find_jobs", "inspect_job", "check", "close")
Adapter = type("Adapter", (LocalAdapter,), {name: turned(name) for name in METHODS})
Adapter.cancel_jobs = BatchWorkerAdapterBase.cancel_jobs
"""
    cases = (
        "test_a_job_runs_once or found or inspect or test_what_jobs_need or test_cancelling_twice "
        "or fresh_adapter or result"
    )
    printed = run_suite(turned, "-k", cases)
    assert re.search(r"\n=+ (\d\d) passed, \d+ deselected", printed), printed


def test_a_subclass_cannot_redefine_a_case() -> None:
    with pytest.raises(UsageError) as caught:
        type("TestHouse", (BackendConformance,), {"test_a_job_runs_once": lambda _: None, "test_mine": None})
    assert str(caught.value) == (
        "TestHouse redefines test_a_job_runs_once, of the conformance suite: give your own case another name. "
        "A standard case cannot be replaced, since a backend that passes must have passed the same cases as every other"
    )


def test_a_suite_without_a_backend_says_what_to_define(run_suite: Callable[..., str]) -> None:
    empty = "from batchport.testing import BackendConformance\nclass TestConformance(BackendConformance):\n    pass\n"
    printed = run_suite("", "-k", "test_a_job_runs_once", suite=empty)
    assert "TestConformance must define the fixture backend, of scope class" in printed


def test_every_case_says_in_a_sentence_what_must_hold() -> None:
    docs = {name: (getattr(BackendConformance, name).__doc__ or "").strip() for name in CASES}
    assert not [name for name, doc in docs.items() if not doc.endswith(".") or "\n" in doc]
    assert len(set(docs.values())) == len(CASES) >= 50
