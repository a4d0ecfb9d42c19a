"""What passes between worker and adapter: bad amounts and limits are refused in words."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from batchport.errors import UsageError
from batchport.jobs import JobSpec, JobState, Limits, Resources


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cpus": 0}, "Resources(cpus=0): must be a whole number of at least 1"),
        ({"cpus": 1.5}, "Resources(cpus=1.5): must be a whole number of at least 1"),
        ({"cpus": True}, "Resources(cpus=True): must be a whole number of at least 1"),
        ({"cpus": None}, "Resources(cpus=None): must be a whole number of at least 1"),
        ({"memory_mib": 0}, "Resources(memory_mib=0): must be a whole number of at least 1"),
        ({"memory_mib": "4G"}, "Resources(memory_mib='4G'): must be a whole number of at least 1"),
        ({"gpus": -1}, "Resources(gpus=-1): must be a whole number of at least 0"),
        ({"time_limit_s": 0}, "Resources(time_limit_s=0): must be a whole number of at least 1"),
        ({"time_limit_s": 0.5}, "Resources(time_limit_s=0.5): must be a whole number of at least 1"),
    ],
)
def test_resources_that_no_backend_could_give_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        Resources(**wrong)
    assert str(raised.value) == message


def test_memory_and_time_may_be_left_to_the_backend() -> None:
    assert (Resources().memory_mib, Resources().time_limit_s) == (None, None)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name_length": 31}, "Limits(name_length=31): unique names need at least 32 characters"),
        ({"inline_bytes": -1}, "Limits(inline_bytes=-1): must be 0 (nothing travels inline) or more"),
        ({"poll_batch": 0}, "Limits(poll_batch=0): must be at least 1, or None for no limit"),
        ({"array_size": 0}, "Limits(array_size=0): must be at least 1, which means no arrays"),
        ({"array_size": 5}, "Limits(array_index=''): arrays need the variable's name"),
        ({"parallel_calls": 0}, "Limits(parallel_calls=0): must be at least 1"),
        ({"settle_s": -1}, "Limits(settle_s=-1): must be 0 seconds or more"),
        ({"submits_per_second": 0}, "Limits(submits_per_second=0): must be above 0"),
    ],
)
def test_limits_under_which_no_worker_could_work_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        Limits(**{"name_length": 64, "inline_bytes": 0, **wrong})
    assert str(raised.value) == message


def test_the_tightest_limits_are_accepted() -> None:
    limits = Limits(name_length=32, inline_bytes=0, poll_batch=1, array_size=2, array_index="INDEX", settle_s=0)
    assert limits.array_index == "INDEX"


def test_only_three_states_are_final() -> None:
    assert {state for state in JobState if state.is_final} == {
        JobState.SUCCEEDED,
        JobState.FAILED,
        JobState.CANCELLED,
    }


def test_the_script_of_a_job_is_bash_that_exports_the_variables_and_becomes_the_command() -> None:
    env = {"BATCHPORT_STORE": "file:///a%20b", "BATCHPORT_PAYLOAD": "aGk+/w=="}
    job = JobSpec("job-1", "job", ("/usr/bin/env", "-u", "HOME"), env, Resources())
    assert job.script == (
        "#!/bin/bash\n"
        "export BATCHPORT_STORE=file:///a%20b\n"
        "export BATCHPORT_PAYLOAD=aGk+/w==\n"
        "exec /usr/bin/env -u HOME\n"
    )
    printed = subprocess.run(("bash", "-c", job.script), check=True, capture_output=True, text=True).stdout
    assert {f"{name}={value}" for name, value in env.items()} <= set(printed.splitlines())
