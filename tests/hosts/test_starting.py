"""What an executor refuses, at once and in words, leaving nothing behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from batchport import BackendUnusableError, BatchExecutor, Limits, StoreError, UsageError
from batchport.backends.local import LocalAdapter, Options


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()
    assert not list(temporary.glob("batchport-store-*"))


def refusal(*args: Any, kind: type[Exception] = UsageError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        BatchExecutor(*args, **options)
    return str(caught.value)


def adapter(tmp_path: Path) -> LocalAdapter:
    return LocalAdapter(Options(folder=str(tmp_path / "jobs")))


def test_an_unknown_backend() -> None:
    assert refusal("locl").startswith("no backend is called 'locl'; did you mean 'local'? installed are: ")


def test_something_that_is_no_backend() -> None:
    assert refusal(7) == "backend=7: give a backend's name, or an adapter (a BatchWorkerAdapterBase)"


def test_an_adapter_without_a_store(tmp_path: Path) -> None:
    assert refusal(adapter(tmp_path)) == (
        "an adapter object needs a store that its jobs can reach: give store= a folder's path or a URL"
    )


def test_an_adapter_with_options(tmp_path: Path) -> None:
    assert refusal(adapter(tmp_path), tmp_path, options={"slots": 1}) == (
        "options= goes with a backend's name; an adapter object was made with its own"
    )


def test_a_store_of_no_known_kind() -> None:
    assert refusal("local", "ftp://somewhere") == (
        "no store is known for 'ftp://somewhere'; give a folder's path or a URL that begins with one of "
        "file://, s3://, gs://, az://, memory://"
    )


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    message = refusal("local", file / "store", kind=StoreError)
    assert message.startswith(f"the store {file}/store cannot ")
    assert message.endswith(": Not a directory")


def test_an_unknown_option() -> None:
    assert refusal("local", max_job=3) == (
        "BatchExecutor has no option 'max_job'; the worker's are: max_jobs, tasks_per_job, retries, poll_s, "
        "results_s, grace_s, start_deadline_s, call_deadline_s, waiting, width, python, launcher, setup, path, code"
    )


def test_an_option_that_makes_no_sense() -> None:
    assert refusal("local", max_jobs=0) == "max_jobs=0: must be at least 1"


def test_lines_of_setup_that_are_no_str() -> None:
    assert refusal("local", setup=("module load gcc",)) == (
        "setup=('module load gcc',): give its lines as one str, such as 'module load gcc\\nmodule load mpi'"
    )


def test_a_name_that_cannot_be_used(tmp_path: Path) -> None:
    assert refusal("local", tmp_path / "store", name="my/name") == (
        "a worker can't be called 'my/name': use 1 to 40 of the characters A-Z a-z 0-9 _ -, "
        "with a letter or digit at both ends"
    )


def test_a_hook_with_the_wrong_signature(tmp_path: Path) -> None:
    class Wrong(LocalAdapter):
        def cancel_job(self) -> None:  # type: ignore[override]
            pass

    assert refusal(Wrong(Options(folder=str(tmp_path))), tmp_path / "store") == (
        "Wrong.cancel_job() -> 'None' does not take what the worker passes; write: def cancel_job(self, job_id)"
    )


def test_limits_that_make_no_sense(tmp_path: Path) -> None:
    class Wrong(LocalAdapter):
        def open(self, worker: str) -> None:
            super().open(worker)
            self.limits = Limits(name_length=8, inline_bytes=0)

    assert refusal(Wrong(Options(folder=str(tmp_path))), tmp_path / "store") == (
        "Limits(name_length=8): unique names need at least 32 characters"
    )


def test_a_backend_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = refusal("local", options={"folder": str(tmp_path / "file")}, kind=BackendUnusableError)
    assert f"{tmp_path}/file" in message


def test_a_named_executor_that_is_already_running(make_executor: Callable[..., BatchExecutor], tmp_path: Path) -> None:
    with make_executor(store=tmp_path / "store", name="ann"):
        assert refusal("local", tmp_path / "store", name="ann") == (
            "a worker named 'ann' is already running on this store, in this process; "
            "end it first, or choose another name for this one"
        )
    with make_executor(store=tmp_path / "store", name="ann") as executor:
        assert executor.submit(abs, -1).result() == 1


def test_a_bar_without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rich", None)
    assert refusal("local", progress=True) == "progress=True needs rich: pip install 'batchport[cli]'"


def test_a_function_that_cannot_be_pickled(make_executor: Callable[..., BatchExecutor]) -> None:
    lock = threading.Lock()

    def locked() -> None:
        with lock:
            pass

    with make_executor() as executor, pytest.raises(UsageError) as caught:
        executor.submit(locked)
    assert str(caught.value) == (
        "the function locked (a function) cannot be pickled: cannot pickle '_thread.lock' object. "
        "Make it inside the function, or pass what it is made from"
    )
    assert executor.counts.jobs == 0


def test_an_argument_that_cannot_be_pickled(make_executor: Callable[..., BatchExecutor]) -> None:
    def keep(*args: object, **kwargs: object) -> None:
        pass

    with make_executor() as executor:
        with pytest.raises(UsageError) as by_place:
            executor.submit(keep, 1, threading.Lock())
        with pytest.raises(UsageError) as by_name:
            executor.submit(keep, 1, key=threading.Lock())
    assert str(by_place.value) == (
        "argument 2 of keep (a _thread.lock) cannot be pickled: cannot pickle '_thread.lock' object. "
        "Make it inside the function, or pass what it is made from"
    )
    assert str(by_name.value).startswith("argument key= of keep (a _thread.lock) cannot be pickled")
