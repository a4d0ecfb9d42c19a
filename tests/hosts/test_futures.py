"""What a future comes to: results, exceptions, failures, and what the task printed."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from batchport import BatchExecutor, Reason, TaskFailedError
from batchport.hosts.executor import RemoteTraceback

cloudpickle.register_pickle_by_value(sys.modules[__name__])


class OwnError(Exception):
    """Has a constructor of its own."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(code, words)
        self.code = code


class HomesickError(Exception):
    """Cannot be unpickled where it was submitted from."""

    def __init__(self, home: int, how: BaseException) -> None:
        super().__init__(home, how)
        self.home, self.how = home, how

    def __reduce__(self) -> Any:
        return _come_home, (self.home, self.how)


def _come_home(home: int, how: BaseException) -> HomesickError:
    if os.getpid() == home:
        raise how
    return HomesickError(home, how)


def failure_of(executor: BatchExecutor, function: Callable[..., object], *args: object) -> TaskFailedError:
    error = executor.submit(function, *args).exception()
    assert isinstance(error, TaskFailedError)
    return error


def test_an_exception_arrives_as_itself_with_the_traceback_of_its_job(executor: BatchExecutor) -> None:
    def go_wrong() -> None:
        raise OwnError(7, "words")

    error = executor.submit(go_wrong).exception()
    assert type(error) is OwnError
    assert (error.code, error.args) == (7, (7, "words"))
    assert isinstance(error.__cause__, RemoteTraceback)
    printed = "".join(traceback.format_exception(error))
    assert 'raise OwnError(7, "words")' in printed
    assert ", in go_wrong" in printed


def test_a_memory_error_of_the_function_arrives_as_itself(executor: BatchExecutor) -> None:
    def ask_for_too_much() -> int:
        return len(bytearray(1 << 60))

    assert isinstance(executor.submit(ask_for_too_much).exception(), MemoryError)


def test_sys_exit_in_the_function_arrives_in_words(executor: BatchExecutor) -> None:
    error = failure_of(executor, sys.exit, 3)
    assert error.failure.reason is Reason.USER_ERROR
    assert error.failure.message == "The function called sys.exit(3)."


def test_a_process_that_dies_arrives_as_a_failure_with_evidence_and_advice(executor: BatchExecutor) -> None:
    def die() -> None:
        print("last words", flush=True)
        os._exit(9)

    error = failure_of(executor, die)
    assert error.failure.reason is Reason.RUNNER_CRASH
    assert (
        str(error).splitlines()[0] == "The task's process ended with exit code 9 before the function returned. [crash]"
    )
    assert "  | last words" in str(error).splitlines()
    assert str(error).splitlines()[-1].startswith("  -> Look for os._exit")


def test_an_exception_that_cannot_be_pickled_arrives_in_words(executor: BatchExecutor) -> None:
    def go_wrong() -> None:
        raise OwnError(threading.Lock(), "held")  # type: ignore[arg-type]

    error = failure_of(executor, go_wrong)
    assert error.failure.reason is Reason.USER_ERROR
    assert "OwnError" in error.failure.message
    assert ", in go_wrong" in error.failure.evidence


@pytest.mark.parametrize("how", [RuntimeError("not here"), SystemExit(3)])
def test_an_exception_that_cannot_be_unpickled_here_arrives_in_words(
    executor: BatchExecutor, how: BaseException
) -> None:
    home = os.getpid()

    def go_wrong() -> None:
        raise HomesickError(home, how)

    error = failure_of(executor, go_wrong)
    assert error.failure.reason is Reason.USER_ERROR
    words = f"The exception itself cannot be unpickled here ({type(how).__name__}: {how})."
    assert error.failure.advice == f"{words} The traceback is the job's: look there first."
    assert ", in go_wrong" in str(error)


@pytest.mark.parametrize("how", [RuntimeError("not here"), SystemExit(3)])
def test_a_result_that_cannot_be_unpickled_here_is_a_failure(executor: BatchExecutor, how: BaseException) -> None:
    error = failure_of(executor, HomesickError, os.getpid(), how)
    assert error.failure.reason is Reason.ENVIRONMENT
    assert error.failure.message == (
        f"The task succeeded, but its result cannot be unpickled here: {type(how).__name__}: {how}"
    )
    assert error.failure.advice == (
        "Import here what the result is made of, in the job's release, or return something simpler."
    )
    assert executor.submit(abs, -1).result() == 1


def test_what_a_task_printed_is_there_after_its_success(executor: BatchExecutor) -> None:
    def speak() -> None:
        print("printed")
        logging.basicConfig()
        logging.getLogger("speaker").warning("logged")

    future = executor.submit(speak)
    future.result()
    assert future.output().splitlines() == ["printed", "WARNING:speaker:logged"]


def test_what_a_task_printed_is_there_after_its_failure(executor: BatchExecutor) -> None:
    def speak() -> None:
        print("printed")
        raise ValueError

    future = executor.submit(speak)
    assert isinstance(future.exception(), ValueError)
    assert future.output() == "printed\n"


def test_what_a_task_prints_can_be_read_while_it_runs(
    executor: BatchExecutor, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    go = tmp_path / "go"

    def speak() -> None:
        print("first")
        while not go.exists():
            time.sleep(0.02)
        print("last")

    future = executor.submit(speak)
    eventually(lambda: future.output() == "first\n")
    assert not future.done()
    go.touch()
    future.result()
    assert future.output() == "first\nlast\n"


def test_a_cancelled_task_has_no_output_and_asking_for_it_does_no_harm(executor: BatchExecutor) -> None:
    future = executor.submit(time.sleep, 60)
    future.cancel()
    assert future.output() == ""
