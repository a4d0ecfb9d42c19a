"""An element of an array: its own pack, found by its index, with the places that the pack has in the job."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from batchport.store import OutKey

if TYPE_CHECKING:
    from tests.runner.conftest import Job

    Wait = Callable[[Callable[[], object]], None]

RESEND = (
    "The store lost or changed what the worker wrote: submit the task again, and check the store if it happens again."
)


@pytest.mark.parametrize("base", [0, 1])
def test_each_element_runs_its_own_pack(job: Job, base: int) -> None:
    job.offer_array([(abs, -1), (abs, -2)], [(abs, -3)], [(abs, -4), (abs, -5)])
    for index in (2, 0, 1):
        job.element(index, base)
        assert job.run() == (0, "", "")
    assert [job.result(place) for place in range(5)] == [1, 2, 3, 4, 5]
    assert job.read("result", 4).task == "task-4"
    assert job.left() == [(place, "result") for place in range(5)]


def test_an_element_reads_as_little_of_a_large_array_as_of_a_small_one(job: Job) -> None:
    job.first(
        "read = FolderStore.get_range\n"
        "def told(self, key, start, length):\n"
        "    print(length, flush=True)\n"
        "    return read(self, key, start, length)\n"
        "FolderStore.get_range = told\n"
        "get = FolderStore.get\n"
        "FolderStore.get = lambda self, key: print('get', key, flush=True) or get(self, key)"
    )
    reads = []
    for size in (3, 300):
        job.offer_array(*[[(abs, -place)] for place in range(100, 100 + size)])
        job.element(2)
        reads.append(job.run()[1].split())
        job.store.delete([job.keys.left(OutKey(job.name, 2, "result"))])
    assert reads[0] == reads[1]
    assert reads[0][:2] == ["16", "16"]
    assert len(reads[0]) == 3


def test_evidence_is_left_at_the_tasks_own_place(job: Job) -> None:
    job.offer_array([abs], [(abs, -1), lambda: os._exit(7)])
    job.element(1)
    assert job.run()[0] == 1
    assert job.left() == [(1, "result"), (2, "evidence")]
    assert job.read("evidence", 2).task == "task-2"


def test_a_stop_marker_counts_for_the_tasks_own_place(job: Job) -> None:
    job.offer_array([(abs, -1)], [(abs, -2), (abs, -3)])
    job.element(1)
    job.stop(1)
    assert job.run()[0] == 0
    assert job.left() == [(1, "stopped"), (2, "result")]


def test_a_running_elements_output_and_stop_marker_have_its_place(job: Job, wait_until: Wait) -> None:
    def f() -> None:
        print("begun")
        time.sleep(300)

    job.first("pack.STOPS_S = 0.05; pack.OUTPUT_S = 0.05")
    job.offer_array([abs], [f])
    job.element(1)
    runner = job.start()
    wait_until(lambda: job.store.get(job.keys.left(OutKey(job.name, 1, "output"))) == b"begun\n")
    job.stop(1)
    assert runner.wait(20) == 0
    assert job.left() == [(1, "output"), (1, "stopped")]


def test_an_element_that_is_told_to_end_leaves_evidence_at_its_place(
    job: Job, tmp_path: Path, wait_until: Wait
) -> None:
    def f() -> None:
        (tmp_path / "running").touch()
        time.sleep(300)

    job.offer_array([abs], [f, abs])
    job.element(1)
    runner = job.start()
    wait_until((tmp_path / "running").exists)
    runner.send_signal(signal.SIGTERM)
    assert runner.wait(5) == 143
    assert job.left() == [(1, "evidence")]


def test_a_function_does_not_see_which_array_it_is_in(job: Job) -> None:
    job.offer_array([lambda: sorted(name for name in os.environ if name in {"BATCHPORT_INDEX", "ELEMENT"})])
    job.element(0)
    job.run()
    assert job.result() == ["ELEMENT"]


@pytest.mark.parametrize(
    ("said", "base", "found"),
    [(None, 0, "is not set"), ("3", 0, "is '3'"), ("0", 1, "is '0'"), ("-1", 0, "is '-1'"), ("all", 0, "is 'all'")],
)
def test_an_element_that_cannot_tell_which_it_is_says_so(job: Job, said: str | None, base: int, found: str) -> None:
    job.offer_array([(abs, -1), (abs, -2)], [(abs, -3)], [(abs, -4)])
    job.element(0, base)
    del job.env["ELEMENT"]
    if said is not None:
        job.env["ELEMENT"] = said
    code, _, err = job.run()
    message = f"ELEMENT {found}, and so names none of the array's 3 elements, counted from {base}"
    assert (code, err) == (1, f"batchport runner: {message}\n")
    assert job.left() == [(0, "evidence")]
    fields = job.fields("evidence")
    assert (fields["reason"], fields["message"], fields["advice"]) == (
        "ENVIRONMENT",
        f"{message}.",
        "The adapter's limits must say what the backend does: `array_index` is the variable, `array_base` the first.",
    )


def test_an_array_without_a_manifest_is_superseded(job: Job) -> None:
    job.offer_array([abs])
    job.element(0)
    job.store.delete([job.keys.manifest(job.name)])
    code, _, err = job.run()
    assert code == 0
    assert "has no manifest any more" in err
    assert job.left() == []


@pytest.mark.parametrize("kept", [0, 20, 100])
def test_an_array_whose_payloads_are_missing_or_cut_off_says_so(job: Job, kept: int) -> None:
    job.offer_array([abs], [abs])
    job.element(1)
    key = job.keys.array(job.name)
    data = job.store.get(key)
    assert data is not None
    job.store.delete([key])
    if kept:
        job.store.put(key, data[:kept])
    assert job.run() == (
        1,
        "",
        (
            "batchport runner: the job's payload is damaged or missing: "
            "ann/arrays/square-7 is not in the store, or cut off\n"
        ),
    )


@pytest.mark.parametrize("byte", [16, 24, 31, -1])
def test_a_damaged_array_says_so_and_runs_nothing(job: Job, byte: int) -> None:
    job.offer_array([abs], [abs])
    job.element(1)
    key = job.keys.array(job.name)
    data = bytearray(job.store.get(key) or b"")
    data[byte] ^= 0x7F
    job.store.put(key, bytes(data))
    code, _, err = job.run()
    assert code == 1
    assert err.startswith("batchport runner: the job's payload is damaged or missing: ")
    assert job.left() == []


def test_a_payload_for_another_python_fails_the_elements_own_tasks(job: Job) -> None:
    job.offer_array([abs], [b"never unpickled", abs], [abs], python="3.9")
    job.element(1)
    assert job.run()[0] == 1
    assert job.left() == [(1, "evidence"), (2, "evidence")]
    assert job.fields("evidence", 2)["reason"] == "ENVIRONMENT"


def test_another_jobs_array_is_refused(job: Job) -> None:
    job.offer_array([abs], [abs], job="cube-8")
    job.element(1)
    assert job.run()[0] == 1
    fields = job.fields("evidence", 1)
    assert fields["message"] == "The job's payload is another job's: it belongs to cube-8, and this is square-7."
    assert (fields["reason"], fields["advice"]) == ("PAYLOAD", RESEND)


def test_an_element_of_an_array_in_an_object_store_runs(job: Job) -> None:
    from tests.runner.test_runner import OBSTORE_ON_A_FOLDER

    job.first(OBSTORE_ON_A_FOLDER)
    job.env["BATCHPORT_STORE"] = f"s3://bucket{job.store.root}"
    job.offer_array([(abs, -1)], [(abs, -2)])
    job.element(1)
    assert job.run() == (0, "False\n", "")
    assert job.result(1) == 2
