"""run(): a backend's command, awaited and checked."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from batchport.commands import run
from batchport.errors import CommandError


async def test_what_a_command_prints_is_returned() -> None:
    assert await run("printf", "job %s\n", "42") == "job 42\n"


async def test_a_command_reads_its_standard_input() -> None:
    assert await run("cat", stdin="#!/bin/bash\ntrue\n") == "#!/bin/bash\ntrue\n"


async def test_a_command_that_does_not_read_a_large_input_is_no_error() -> None:
    assert await run("true", stdin="x" * 1_000_000) == ""


async def test_output_that_is_not_utf8_is_still_returned() -> None:
    assert await run("printf", r"caf\351") == "caf�"


async def test_the_environment_is_inherited_unless_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOUSE", "mine")
    assert await run("bash", "-c", "echo $HOUSE") == "mine\n"
    assert await run("bash", "-c", "echo $HOUSE", env={"PATH": os.environ["PATH"]}) == "\n"


async def test_a_bad_exit_code_raises_with_the_code_and_what_was_printed() -> None:
    with pytest.raises(CommandError) as raised:
        await run("bash", "-c", "echo partly; echo no such queue >&2; exit 3")
    assert str(raised.value) == ("bash -c echo partly; echo no such queue >&2; exit 3 exited with 3: no such queue")
    assert (raised.value.code, raised.value.out, raised.value.err) == (3, "partly\n", "no such queue\n")


async def test_an_exit_code_that_the_caller_expects_is_no_error() -> None:
    assert await run("bash", "-c", "echo none; exit 1", ok=(0, 1)) == "none\n"


async def test_a_command_that_is_not_there_is_named() -> None:
    with pytest.raises(CommandError) as raised:
        await run("no-such-command", "-x")
    assert str(raised.value) == "no-such-command -x failed: No such file or directory: no-such-command"
    assert raised.value.code is None


async def test_a_command_that_may_not_be_run_is_named(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.touch(0o600)
    with pytest.raises(CommandError) as raised:
        await run(str(script))
    assert str(raised.value) == f"{script} failed: Permission denied: {script}"


async def test_a_command_that_does_not_end_in_time_is_killed_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with pytest.raises(CommandError) as raised:
        await run("bash", "-c", f"sleep 50 & echo $$ $! >{pids}; wait", timeout_s=1)
    assert str(raised.value).endswith("; wait failed: no answer within 1 s; it was killed")
    assert raised.value.code is None
    await _until_gone(pids)


async def test_a_command_is_killed_when_its_caller_is_cancelled(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    running = asyncio.create_task(run("bash", "-c", f"sleep 50 & echo $$ $! >{pids}.new; mv {pids}.new {pids}; wait"))
    while not pids.exists():
        await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await _until_gone(pids)


async def _until_gone(pids: Path) -> None:
    for pid in pids.read_text().split():
        while _alive(pid):
            await asyncio.sleep(0.01)


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    # An orphan whose init does not collect it stays as a zombie.
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(") ")[2][0] != "Z"
