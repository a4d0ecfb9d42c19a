"""Options that reach the job: setup, launcher, width, label."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cloudpickle

from batchport import BatchExecutor

cloudpickle.register_pickle_by_value(sys.modules[__name__])

Make = Callable[..., BatchExecutor]


def job_name() -> str:
    return os.environ["BATCHPORT_JOB"]


def test_setup_lines_run_in_the_job_before_the_function(make_executor: Make) -> None:
    setup = 'said="two words"\nexport SAID="$said, and a \'quote\'"'
    with make_executor(setup=setup) as executor:
        assert executor.submit(os.getenv, "SAID").result() == "two words, and a 'quote'"


def test_the_launcher_stands_before_python(make_executor: Make) -> None:
    with make_executor(launcher=["env", "LAUNCHED=1"]) as executor:
        assert executor.submit(os.getenv, "LAUNCHED").result() == "1"


def test_width_runs_so_many_calls_of_a_pack_at_once(make_executor: Make, tmp_path: Path) -> None:
    def meet(mine: Path, other: Path) -> str:
        mine.touch()
        deadline = time.monotonic() + 20
        while not other.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert other.exists()
        return job_name()

    here, there = tmp_path / "here", tmp_path / "there"
    with make_executor(width=2, tasks_per_job=2) as executor:
        one, two = executor.submit(meet, here, there), executor.submit(meet, there, here)
        assert one.result() == two.result()


def test_a_label_follows_the_functions_name_in_the_names_of_jobs(make_executor: Make) -> None:
    with make_executor() as executor:
        assert executor.options(label="March, 2nd try").submit(job_name).result().startswith("job-name-march-2nd-try-")
        labelled = executor.options(label="a").options(cpus=1)
        assert labelled.submit(job_name).result().startswith("job-name-a-")
        assert labelled.options(label="").submit(job_name).result().startswith("job-name-")
