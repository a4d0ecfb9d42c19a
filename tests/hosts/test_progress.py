"""The progress bar."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress

import pytest

from batchport import BatchExecutor


def test_a_bar_leaves_its_last_state_on_standard_error(
    make_executor: Callable[..., BatchExecutor], capsys: pytest.CaptureFixture[str]
) -> None:
    with make_executor(progress=True) as executor:
        executor.submit(abs, -1).result()
        executor.submit(lambda: 1 // 0).exception()
    printed, bar = capsys.readouterr()
    assert printed == ""
    assert "2/2 done, 1 failed, 0 at the backend" in " ".join(bar.split())


def test_a_bar_that_had_nothing_to_show_leaves_nothing(
    make_executor: Callable[..., BatchExecutor], capsys: pytest.CaptureFixture[str]
) -> None:
    with make_executor(progress=True):
        pass
    assert capsys.readouterr() == ("", "")


def test_a_bar_moves_on_a_terminal_while_work_is_pending_and_leaves_standard_output_alone() -> None:
    script = (
        "import time; from batchport import BatchExecutor\n"
        "with BatchExecutor('local', progress=True, results_s=0.05) as executor:\n"
        "    future = executor.submit(time.sleep, 1)\n"
        "    time.sleep(0.5); print('printed meanwhile'); future.result()\n"
    )
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        seen = b""
        with suppress(OSError):  # a terminal says so at its end
            while data := os.read(ours, 4096):
                seen += data
        os.close(ours)
        assert process.stdout is not None
        assert process.stdout.read() == b"printed meanwhile\n"
    assert process.returncode == 0
    assert b"0/1" in seen
    assert b"1/1" in seen
    assert b"printed" not in seen
