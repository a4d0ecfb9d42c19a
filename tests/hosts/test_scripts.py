"""Whole scripts: what is in `__main__` or beside it, the interpreter's exit, Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchport import BatchExecutor

START = """
import os, signal, sys, time
from pathlib import Path
from batchport import BatchExecutor
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
FAST = dict(poll_s=(0.1, 1), results_s=0.05, grace_s=2, options={"folder": "jobs", "slots": 2})
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Write a script into a folder of its own."""

    def write(text: str, name: str = "script.py") -> Path:
        (tmp_path / "scripts").mkdir(exist_ok=True)
        path = tmp_path / "scripts" / name
        path.write_text(START + textwrap.dedent(text), encoding="utf-8")
        return path

    return write


def start(script: Path, *args: str) -> subprocess.Popen[str]:
    folder = script.parent.parent
    (folder / "temporary").mkdir(exist_ok=True)
    environment = {**os.environ, "TMPDIR": str(folder / "temporary")}
    command = [sys.executable, "-W", "error", "-X", "dev", str(script), *args]
    pipe: Any = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def run(script: Path, *args: str) -> tuple[int, str, str]:
    with start(script, *args) as process:
        out, err = process.communicate(timeout=50)
    assert not list((script.parent.parent / "temporary").glob("batchport-store-*"))
    return process.returncode, out, err


def test_functions_and_classes_of_main_work_and_results_are_of_the_same_class(write: Callable[..., Path]) -> None:
    script = write("""
        class Point:
            def __init__(self, x): self.x = x
        def move(point): return Point(point.x + STEP)
        STEP = 2
        if __name__ == "__main__":
            with BatchExecutor("local", **FAST) as executor:
                point = executor.submit(move, Point(1)).result()
                print(point.x, type(point) is Point)
    """)
    assert run(script) == (0, "3 True\n", "")


def test_modules_beside_the_script_and_on_added_paths_are_found_in_the_job(write: Callable[..., Path]) -> None:
    script = write("""
        sys.path.append("more")
        import beside, further
        with BatchExecutor("local", **FAST) as executor:
            print(executor.submit(beside.name).result(), executor.submit(further.name).result())
    """)
    (script.parent / "beside.py").write_text("def name(): return __name__\n", encoding="utf-8")
    more = script.parent.parent / "more"
    more.mkdir()
    (more / "further.py").write_text("def name(): return __name__\n", encoding="utf-8")
    assert run(script) == (0, "beside further\n", "")


def test_the_interpreter_waits_at_its_exit_for_pending_work(write: Callable[..., Path]) -> None:
    script = write("""
        executor = BatchExecutor("local", max_jobs=1, **FAST)
        executor.submit(time.sleep, 0.3)
        future = executor.submit(Path("mark").write_text, "done")
        future.add_done_callback(lambda future: print("wrote", future.result()))
    """)
    assert run(script) == (0, "wrote 4\n", "")
    assert (script.parent.parent / "mark").read_text(encoding="utf-8") == "done"


def test_the_interpreter_waits_for_an_executor_that_nobody_holds(write: Callable[..., Path]) -> None:
    script = write("""
        BatchExecutor("local", **FAST).submit(time.sleep, 0.3).add_done_callback(lambda _: print("done"))
    """)
    assert run(script) == (0, "done\n", "")


def test_an_error_in_the_script_after_a_shutdown_without_waiting_does_not_hang(write: Callable[..., Path]) -> None:
    script = write("""
        executor = BatchExecutor("local", **FAST)
        executor.submit(time.sleep, 0.3)
        executor.shutdown(wait=False)
        sys.exit(7)
    """)
    assert run(script) == (7, "", "")


def test_a_fork_of_the_process_ends_without_waiting(write: Callable[..., Path]) -> None:
    script = write("""
        import warnings
        warnings.simplefilter("ignore")  # Python 3.12 on warns of a fork where there are threads
        executor = BatchExecutor("local", **FAST)
        future = executor.submit(time.sleep, 0.5)
        if (pid := os.fork()) == 0:
            sys.exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), future.done(), future.result())
    """)
    assert run(script) == (0, "7 False None\n", "")


WAITS = """
    def sleep():
        Path("mark").write_text(f"{os.getpid()}\\n")
        time.sleep(50)
"""


def interrupt(script: Path, eventually: Callable[..., None]) -> tuple[int, str, str]:
    mark = script.parent.parent / "mark"
    with start(script) as process:
        eventually(lambda: mark.exists() and mark.read_text(encoding="utf-8").endswith("\n"))
        time.sleep(0.3)  # it runs; the script comes to its own wait meanwhile, and if not, nothing changes
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=40)
    pid = int(mark.read_text(encoding="utf-8"))
    assert not Path(f"/proc/{pid}").exists()
    assert not list((script.parent.parent / "temporary").glob("batchport-store-*"))
    return process.returncode, out, err


@pytest.mark.parametrize("body", ["future.result()", "pass"])
def test_ctrl_c_in_a_with_ends_the_jobs_and_is_raised(
    write: Callable[..., Path], eventually: Callable[..., None], body: str
) -> None:
    script = write(
        WAITS
        + f"""
    with BatchExecutor("local", **FAST) as executor:
        future = executor.submit(sleep)
        future.add_done_callback(lambda future: print("cancelled:", future.cancelled()))
        {body}
    """
    )
    code, out, err = interrupt(script, eventually)
    assert out == "cancelled: True\n"
    assert err.endswith("KeyboardInterrupt\n")
    assert code == -signal.SIGINT


def test_ctrl_c_at_the_interpreters_exit_ends_the_jobs(
    write: Callable[..., Path], eventually: Callable[..., None]
) -> None:
    script = write(
        WAITS
        + """
    executor = BatchExecutor("local", **FAST)
    executor.submit(sleep)
    """
    )
    _, _, err = interrupt(script, eventually)
    assert "KeyboardInterrupt" in err


def test_a_named_executor_that_runs_in_another_process_is_refused(
    make_executor: Callable[..., BatchExecutor], write: Callable[..., Path], tmp_path: Path
) -> None:
    script = write("""
        BatchExecutor("local", sys.argv[1], name="ann", **FAST)
    """)
    with make_executor(store=tmp_path / "store", name="ann"):
        code, _, err = run(script, str(tmp_path / "store"))
    assert code == 1
    assert err.splitlines()[-1] == (
        f"batchport.errors.UsageError: a worker named 'ann' is already running on this store, as process {os.getpid()} "
        "on this machine; end it first, or choose another name for this one"
    )
