"""Names of workers and jobs: unique for ever, safe everywhere, and one worker of a name at a time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchport import UsageError
from batchport.jobs import NAME_LENGTH
from batchport.store import FolderStore, Keys
from batchport.worker.naming import Epoch, begin_epoch, check_worker_name, end_epoch, job_name, label_of


@given(st.text(), st.integers(1, 36**4 - 1), st.integers(1, 36**7 - 1), st.integers(NAME_LENGTH, 300))
def test_a_jobs_name_is_safe_short_enough_and_begins_with_a_letter(
    words: str, epoch: int, serial: int, longest: int
) -> None:
    name = job_name(label_of(words), Epoch("k3j9x2ab", epoch), serial, longest)
    assert re.fullmatch(r"[a-z][a-z0-9-]*[a-z0-9]", name)
    assert len(name) <= longest


@given(st.sets(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), min_size=2))
def test_different_jobs_have_different_names(jobs: set[tuple[int, int]]) -> None:
    names = {job_name("fit", Epoch("k3j9x2ab", epoch), serial, NAME_LENGTH) for epoch, serial in jobs}
    assert len(names) == len(jobs)


@pytest.mark.parametrize(
    ("words", "label"),
    [
        ("fit_model", "fit-model"),
        ("<lambda>", "lambda"),
        ("7zip", "zip"),
        ("", ""),
        ("über", "ber"),
        ("a" * 40, "a" * 30),
        ("a" * 29 + "_b", "a" * 29),
    ],
)
def test_a_label_keeps_what_people_can_read(words: str, label: str) -> None:
    assert label_of(words) == label


@pytest.mark.parametrize("name", ["", "a b", "-a", "a-", "a/b", "a.b", "ä", "x" * 41])
def test_a_worker_name_that_cannot_be_a_key_is_refused(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_worker_name(name)
    assert str(caught.value) == (
        f"a worker can't be called {name!r}: use 1 to 40 of the characters A-Z a-z 0-9 _ -, "
        "with a letter or digit at both ends"
    )


def test_each_start_takes_the_next_epoch_and_keeps_the_birth(tmp_path: Path) -> None:
    store, keys = FolderStore(tmp_path), Keys("w")
    epochs = []
    for _ in range(3):
        epochs.append(begin_epoch(store, keys))
        end_epoch(store, keys, epochs[-1])
    assert [epoch.number for epoch in epochs] == [1, 2, 3]
    assert len({epoch.birth for epoch in epochs}) == 1
    assert store.names(keys.epochs) == ["00000003"], "only the newest tells anything"


def test_two_workers_of_different_names_have_different_births(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    assert begin_epoch(store, Keys("a")).birth != begin_epoch(store, Keys("b")).birth


def test_a_worker_that_runs_in_this_process_is_named(tmp_path: Path) -> None:
    store, keys = FolderStore(tmp_path), Keys("w")
    begin_epoch(store, keys)
    with pytest.raises(UsageError) as caught:
        begin_epoch(store, keys)
    assert str(caught.value) == (
        "a worker named 'w' is already running on this store, in this process; "
        "end it first, or choose another name for this one"
    )


def test_a_worker_that_runs_in_another_process_is_named_by_its_pid(tmp_path: Path) -> None:
    begin = (
        "import sys; from batchport.store import *; from batchport.worker.naming import *; "
        "begin_epoch(open_store(sys.argv[1]), Keys('w')); print('begun', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", begin, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "begun\n"
        with pytest.raises(UsageError, match=f"already running on this store, as process {other.pid} on this machine"):
            begin_epoch(FolderStore(tmp_path), Keys("w"))
        other.kill()
    assert begin_epoch(FolderStore(tmp_path), Keys("w")).number == 2, "a worker that was killed is in nobody's way"


def test_a_pid_that_is_used_again_is_not_taken_for_the_worker(tmp_path: Path) -> None:
    store, keys = FolderStore(tmp_path), Keys("w")
    begin_epoch(store, keys)
    about = json.loads(store.get(keys.epoch(1)) or b"")
    about["started"] = "1"  # a process of this pid lived long ago
    store.put(keys.epoch(1), json.dumps(about).encode())
    assert begin_epoch(store, keys).number == 2
