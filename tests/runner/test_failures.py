"""How each way to fail is told: the sentence, the reason, the evidence, what to do, and the exit code."""

from __future__ import annotations

import base64
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest

from batchport.envelope import Envelope

if TYPE_CHECKING:
    from tests.runner.conftest import Job

    Wait = Callable[[Callable[[], object]], None]

RESEND = (
    "The store lost or changed what the worker wrote: submit the task again, and check the store if it happens again."
)
HERE = f"{sys.executable}, Python {sys.version.split()[0]}, on {os.uname().nodename}"


def told(fields: dict[str, Any]) -> tuple[str | None, str, str]:
    return fields["reason"], fields["message"], fields["advice"]


def test_an_exception_travels_as_itself_with_its_traceback(job: Job) -> None:
    def inner(text: str) -> None:
        raise ValueError(text)

    job.offer((lambda: inner("bad input"),))
    assert job.run() == (1, "", "")
    assert job.left() == [(0, "result")]
    fields = job.fields("exception")
    assert told(fields) == (
        "USER_ERROR",
        "The function raised ValueError: bad input.",
        "The traceback is the job's: look there first.",
    )
    assert fields["type"] == "ValueError"
    lines = fields["evidence"].splitlines()
    assert (lines[0], lines[-1]) == ("Traceback (most recent call last):", "ValueError: bad input")
    assert "batchport" not in fields["evidence"].replace(__file__, "")
    assert len([line for line in lines if line.startswith("  File")]) == 2
    error = cloudpickle.loads(job.read("result").parts[0])
    assert (type(error), error.args) == (ValueError, ("bad input",))


def test_what_was_printed_before_an_exception_is_kept(job: Job) -> None:
    def f() -> None:
        os.write(1, b"before\n")
        raise ValueError

    job.offer(f)
    job.run()
    assert job.output() == "before\n"
    assert job.fields("exception")["message"] == "The function raised ValueError."


def test_an_exception_that_cannot_be_pickled_comes_in_words(job: Job) -> None:
    def f() -> None:
        raise ValueError("holds", (each for each in ""))

    job.offer(f)
    assert job.run()[0] == 1
    fields = job.fields("exception")
    assert fields["reason"] == "USER_ERROR"
    assert fields["message"].startswith("The function raised ValueError: ('holds', <generator object")
    assert job.read("result").parts[0] == b""


def test_an_exception_that_cannot_be_unpickled_comes_in_words(job: Job) -> None:
    def f() -> None:
        class TwoArgumentsError(Exception):
            def __init__(self, first: str, second: str) -> None:
                super().__init__(first + second)

        raise TwoArgumentsError("a", "b")

    job.offer(f)
    assert job.run()[0] == 1
    assert job.fields("exception")["message"].endswith(".TwoArgumentsError: ab.")
    assert job.read("result").parts[0] == b""


def test_an_exception_whose_str_raises_is_told_all_the_same(job: Job) -> None:
    def f() -> None:
        class ShyError(Exception):
            def __str__(self) -> str:
                raise RuntimeError

        ShyError.__qualname__ = "ShyError"
        raise ShyError

    job.offer(f)
    assert job.run()[0] == 1
    assert job.fields("exception")["message"] == "The function raised ShyError: (its str() raises)."


@pytest.mark.parametrize(("code", "said"), [(3, "3"), (0, "0"), (None, ""), ("no input", "'no input'")])
def test_sys_exit_is_a_failure(job: Job, code: object, said: str) -> None:
    job.offer((sys.exit, code))
    assert job.run()[0] == 1
    assert told(job.fields("exception")) == (
        "USER_ERROR",
        f"The function called sys.exit({said}).",
        "Return or raise instead: sys.exit gives no result.",
    )
    assert job.read("result").parts[0] == b"", "raised in the host, it would end the host"


def test_os_exit_is_a_crash(job: Job) -> None:
    def f() -> None:
        print("last words", flush=True)
        os._exit(7)

    job.offer(f)
    assert job.run()[0] == 1
    assert job.left() == [(0, "evidence")]
    fields = job.fields("evidence")
    assert told(fields) == (
        "RUNNER_CRASH",
        "The task's process ended with exit code 7 before the function returned.",
        "Look for os._exit, or a library that ends the process; its last lines may say why.",
    )
    assert (fields["exit_code"], fields["evidence"], job.output()) == (7, "last words", "last words\n")


def test_a_segmentation_fault_is_named_and_shows_the_python_stack(job: Job) -> None:
    job.offer((ctypes.string_at, 0))
    assert job.run()[0] == 1
    fields = job.fields("evidence")
    assert told(fields) == (
        "RUNNER_CRASH",
        "The task's process was ended by SIGSEGV (Segmentation fault).",
        "Compiled code crashed: the Python stack in the evidence shows which call.",
    )
    assert fields["exit_code"] == 128 + signal.SIGSEGV
    assert "in string_at" in fields["evidence"]
    assert "runner" not in fields["evidence"]


def test_sigkill_leaves_the_reason_to_the_backend(job: Job) -> None:
    job.offer(lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert job.run()[0] == 1
    fields = job.fields("evidence")
    assert told(fields) == (
        None,
        "The task's process was ended by SIGKILL (Killed).",
        "Somebody sent it, or the machine ran out of memory: look at the backend's and the kernel's log.",
    )
    assert fields["exit_code"] == 137


def test_sigkill_with_a_kill_counted_by_the_cgroup_is_out_of_memory(job: Job, tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("4:memory:/old\n0::/job/step\n")
    events = tmp_path / "job/step/memory.events"
    events.parent.mkdir(parents=True)
    events.write_text("low 0\nhigh 0\nmax 8\noom 1\noom_kill 1\noom_group_kill 0\n")
    job.first(
        f"memory.PROC = memory.Path({str(tmp_path / 'cgroup')!r}); memory.CGROUPS = memory.Path({str(tmp_path)!r})"
    )

    def f() -> None:
        events.write_text("low 0\nhigh 0\nmax 9\noom 2\noom_kill 2\noom_group_kill 0\n")
        os.kill(os.getpid(), signal.SIGKILL)

    job.offer(f, lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert job.run()[0] == 1
    assert told(job.fields("evidence", 0)) == (
        "OUT_OF_MEMORY",
        "The task's process was ended by SIGKILL (Killed) because its memory was used up.",
        "Ask for more with memory_mib, or split the work.",
    )
    assert job.fields("evidence", 1)["reason"] is None


def test_memory_error_is_out_of_memory(job: Job) -> None:
    job.offer(lambda: bytearray(1 << 62))
    assert job.run()[0] == 1
    assert told(job.fields("exception")) == (
        "OUT_OF_MEMORY",
        "The function ran out of memory: MemoryError.",
        "Ask for more with memory_mib, or split the work.",
    )
    assert isinstance(cloudpickle.loads(job.read("result").parts[0]), MemoryError)


def test_a_task_is_ended_at_its_time_limit_and_the_evidence_shows_where_it_was(job: Job) -> None:
    def f() -> None:
        def the_slow_part() -> None:
            time.sleep(300)

        print("page 12")
        the_slow_part()

    job.offer(f, time_limit_s=1)
    assert job.run()[0] == 1
    fields = job.fields("evidence")
    assert told(fields) == (
        "TIMEOUT",
        "The task ran longer than its time limit of 1 s and was ended.",
        "Ask for more with time_limit_s, or split the work.",
    )
    lines = fields["evidence"].splitlines()
    assert lines[:2] == ["page 12", "It was here:"]
    assert "in the_slow_part" in lines[3]
    assert len(lines) == 5, "a heading, the_slow_part and f, and no frame of the runner's"
    assert job.output().splitlines() == lines
    assert fields["exit_code"] == 128 + signal.SIGTERM


def test_a_task_that_ignores_sigterm_is_killed_at_its_time_limit(job: Job) -> None:
    def f() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(300)

    job.offer(f, time_limit_s=1)
    assert job.run()[0] == 1
    assert (job.fields("evidence")["reason"], job.fields("evidence")["exit_code"]) == ("TIMEOUT", 137)


def test_a_task_that_answers_sigterm_by_raising_has_still_run_out_of_time(job: Job) -> None:
    def f() -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        time.sleep(300)

    job.offer(f, time_limit_s=1)
    job.run()
    assert job.fields("evidence")["reason"] == "TIMEOUT"


def test_a_result_that_cannot_be_pickled_is_named_by_its_type(job: Job) -> None:
    job.offer(lambda: (each for each in ""))
    assert job.run()[0] == 1
    fields = job.fields("exception")
    assert told(fields) == (
        "USER_ERROR",
        (
            "The function returned a value of type generator that cannot be pickled: "
            "TypeError: cannot pickle 'generator' object."
        ),
        "Return something that can be pickled, such as a list for a generator or a path for an open file.",
    )
    assert job.read("result").parts[0] == b""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_runner_that_is_told_to_end_leaves_evidence_and_starts_nothing_more(
    job: Job, tmp_path: Path, wait_until: Wait, number: signal.Signals
) -> None:
    mark = tmp_path / "running"

    def f() -> None:
        mark.touch()
        time.sleep(300)

    job.offer(f, lambda: 2)
    runner = job.start()
    wait_until(mark.exists)
    runner.send_signal(number)
    assert runner.wait(5) == 143
    assert job.left() == [(0, "evidence")]
    assert told(job.fields("evidence")) == (
        None,
        f"The job was told to end by {number.name} while the task ran.",
        "The backend knows why: a cancel, its time limit, or a lost machine.",
    )


@pytest.mark.parametrize("inline", [True, False])
def test_a_damaged_payload_fails_every_task(job: Job, *, inline: bool) -> None:
    job.offer(lambda: 1, lambda: 2, inline=inline)
    key = job.keys.manifest(job.name)
    data = base64.b64decode(job.env["BATCHPORT_PAYLOAD"]) if inline else job.store.get(key)
    assert data is not None
    damaged = data[:-1] + bytes([data[-1] ^ 1])
    if inline:
        job.env["BATCHPORT_PAYLOAD"] = base64.b64encode(damaged).decode()
    else:
        job.store.put(key, damaged)
    assert job.run()[0] == 1
    # Nothing that could be trusted says how many tasks a damaged manifest has.
    assert job.left() == ([(0, "evidence"), (1, "evidence")] if inline else [(0, "evidence")])
    reason, message, advice = told(job.fields("evidence"))
    assert (reason, advice) == ("PAYLOAD", RESEND)
    assert message.startswith(f"The job's payload is damaged or missing: the {'payload' if inline else 'manifest'} of")
    assert "its digest does not match its" in message


def test_a_payload_that_is_no_base64_is_damaged(job: Job) -> None:
    job.offer(lambda: 1)
    job.env["BATCHPORT_PAYLOAD"] = "%%%"
    assert job.run()[0] == 1
    reason, message, _ = told(job.fields("evidence"))
    assert reason == "PAYLOAD"
    assert message.startswith("The job's payload is damaged or missing: ")


def test_an_inline_payload_that_did_not_come_is_missed(job: Job) -> None:
    job.offer(lambda: 1)
    del job.env["BATCHPORT_PAYLOAD"]
    assert job.run()[0] == 1
    assert told(job.fields("evidence")) == (
        "PAYLOAD",
        (
            "The job's payload is damaged or missing: "
            "BATCHPORT_PAYLOAD, which should hold it, is not in the job's environment."
        ),
        RESEND,
    )


def test_another_jobs_payload_is_refused(job: Job) -> None:
    job.offer(lambda: 1, job="cube-8")
    assert job.run()[0] == 1
    assert told(job.fields("evidence")) == (
        "PAYLOAD",
        "The job's payload is another job's: it belongs to cube-8, and this is square-7.",
        RESEND,
    )


def test_a_payload_with_other_tasks_than_the_manifest_is_refused(job: Job) -> None:
    job.offer(lambda: 1)
    manifest = Envelope("manifest", job.name, fields={"tasks": ["other", "tasks"], "inline": True})
    job.store.put(job.keys.manifest(job.name), manifest.to_bytes())
    assert job.run()[0] == 1
    assert job.left() == [(0, "evidence"), (1, "evidence")]
    assert told(job.fields("evidence", 1)) == (
        "PAYLOAD",
        "The job's payload is damaged or missing: its tasks are not those of the job's manifest.",
        RESEND,
    )


def test_a_blob_that_is_missing_fails_its_task_only(job: Job) -> None:
    job.offer((abs, 1), lambda: 2, fields={"args": ["gone"]})
    assert job.run()[0] == 1
    assert job.left() == [(0, "evidence"), (1, "result")]
    assert told(job.fields("evidence")) == (
        "PAYLOAD",
        "The task's function or an argument is not in the store: ann/blobs/gone.",
        RESEND,
    )


def test_a_blob_that_went_with_its_manifest_means_superseded(job: Job) -> None:
    def f(manifest: str) -> None:
        Path(manifest).unlink()

    job.offer((f, str(job.store.root / job.keys.manifest(job.name))), (abs, "?"), inline=False)
    manifest = job.store.get(job.keys.manifest(job.name))
    assert manifest is not None
    envelope = Envelope.from_bytes(manifest, ("manifest",))
    envelope.fields["payload"]["tasks"][1]["args"] = ["gone"]
    job.store.put(job.keys.manifest(job.name), envelope.to_bytes())
    assert job.run()[0] == 0
    assert job.left() == [(0, "result")]


def test_bytes_that_are_no_pickle_are_damaged(job: Job) -> None:
    job.offer((abs, b"\x80\x04rubbish"))
    assert job.run()[0] == 1
    reason, message, advice = told(job.fields("evidence"))
    assert (reason, advice) == ("PAYLOAD", RESEND)
    assert message.startswith("Argument 1 is damaged: ")


def test_another_python_is_refused_before_anything_is_unpickled(job: Job) -> None:
    job.offer(b"never unpickled", b"nor this", python="3.9")
    assert job.run()[0] == 1
    assert job.left() == [(0, "evidence"), (1, "evidence")]
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert told(job.fields("evidence")) == (
        "ENVIRONMENT",
        f"The task was pickled by Python 3.9, and the job runs Python {here}, which cannot run its code.",
        (
            "Set the worker's `python` to an interpreter of that version, build the jobs' image with it, or submit "
            "from a Python of the job's."
        ),
    )
    assert job.fields("evidence", 1)["evidence"] == HERE


def test_another_major_cloudpickle_is_refused_before_anything_is_unpickled(job: Job) -> None:
    job.offer(b"never unpickled, though it names cloudpickle", cloudpickle="2.2.1")
    assert job.run()[0] == 1
    ours = cloudpickle.__version__
    assert told(job.fields("evidence")) == (
        "ENVIRONMENT",
        f"The task was pickled by cloudpickle 2.2.1, and the job has cloudpickle {ours}, which cannot read it.",
        "Install cloudpickle==2.2.1 in the job's Python.",
    )


def test_another_minor_cloudpickle_is_tried(job: Job) -> None:
    job.offer(lambda: 1, cloudpickle="3.999.0")
    assert job.run()[0] == 0


def test_another_minor_cloudpickle_is_blamed_if_unpickling_fails(job: Job) -> None:
    job.offer(b"garbage", cloudpickle="3.999.0")
    assert job.run()[0] == 1
    reason, message, advice = told(job.fields("evidence"))
    assert (reason, advice) == ("ENVIRONMENT", "Install cloudpickle==3.999.0 in the job's Python.")
    ours = cloudpickle.__version__
    assert message.startswith(
        f"The task was pickled by cloudpickle 3.999.0, and the job has cloudpickle {ours}, "
        "where it cannot be unpickled: UnpicklingError: "
    )


def test_another_codec_is_refused(job: Job) -> None:
    job.offer(lambda: 1, codec="their own")
    assert job.run()[0] == 1
    assert told(job.fields("evidence")) == (
        "ENVIRONMENT",
        "The task was made by 'their own', which this batchport cannot read.",
        "Install the worker's batchport release in the job's Python.",
    )


def test_a_module_that_the_job_lacks_is_named(job: Job) -> None:
    job.offer((abs, b"cnot_here.sub\nthing\n."))
    assert job.run()[0] == 1
    fields = job.fields("evidence")
    assert told(fields) == (
        "ENVIRONMENT",
        "The job's Python has no module 'not_here', which argument 1 needs.",
        (
            "Send it along, code=[not_here] or batchport worker --code FOLDER; or install it in the job's Python; "
            "or name the folder that holds it in the worker's `path`."
        ),
    )
    assert fields["evidence"] == HERE


def test_a_name_that_the_jobs_module_lacks_is_named(job: Job) -> None:
    job.offer(b"cjson\nnot_there\n.")
    assert job.run()[0] == 1
    reason, message, advice = told(job.fields("evidence"))
    assert reason == "ENVIRONMENT"
    assert message.startswith("The job's Python cannot import what the function needs: ")
    assert "not_there" in message
    assert advice == "Install that module in the job's Python, in the same release as where the task was submitted."


def test_a_job_without_cloudpickle_says_so(job: Job) -> None:
    job.first("import sys; sys.modules['cloudpickle'] = None")
    job.offer(lambda: 1)
    assert job.run()[0] == 1
    assert told(job.fields("evidence"))[:2] == (
        "ENVIRONMENT",
        "The job's Python has no module 'cloudpickle', which the runner needs.",
    )


def test_an_argument_whose_own_unpickling_raises_is_the_users_error(job: Job) -> None:
    class Fragile:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return int, ("no number",)

    job.offer((abs, Fragile()))
    assert job.run()[0] == 1
    fields = job.fields("evidence")
    assert told(fields) == (
        "USER_ERROR",
        "Argument 1 cannot be unpickled in the job: ValueError: invalid literal for int() with base 10: 'no number'.",
        "Pass something simpler, and make this inside the function.",
    )
    assert fields["evidence"].endswith("ValueError: invalid literal for int() with base 10: 'no number'\n")


@pytest.mark.parametrize("name", ["BATCHPORT_STORE", "BATCHPORT_WORKER", "BATCHPORT_JOB"])
def test_a_runner_that_was_not_started_by_a_worker_says_so(job: Job, name: str) -> None:
    del job.env[name]
    message = f"batchport runner: '{name}' is not set: the runner is started by a worker's job, not by people\n"
    assert job.run() == (2, "", message)


def test_a_memory_store_is_refused(job: Job) -> None:
    job.env["BATCHPORT_STORE"] = "memory://here"
    assert job.run() == (
        2,
        "",
        (
            "batchport runner: the store memory://here lives inside the worker's process, where no job can reach it: "
            "give the worker a folder that its jobs see, or an s3://, gs:// or az:// URL\n"
        ),
    )


def test_a_store_of_no_known_kind_is_refused(job: Job) -> None:
    job.env["BATCHPORT_STORE"] = "ftp://here"
    code, _, err = job.run()
    assert code == 2
    assert err.startswith("batchport runner: no store is known for 'ftp://here'")


def test_a_folder_that_this_machine_does_not_have_is_not_taken_for_superseded(job: Job) -> None:
    code, _, err = job.run()
    assert code == 74
    assert err == (
        f"batchport runner: the store {job.store.root} is no folder on {os.uname().nodename}: "
        "do the worker's machine and this one share it?\n"
    )


def test_a_store_that_cannot_be_read_at_the_start_is_tried_again_and_then_told(job: Job) -> None:
    job.first("pack.PAUSES_S = (0.01, 0.01)")
    job.offer(lambda: 1)
    manifest = job.store.root / job.keys.manifest(job.name)
    manifest.unlink()
    manifest.mkdir()
    code, _, err = job.run()
    assert code == 74
    assert err == (
        f"batchport runner: the store {job.store.root} cannot read {job.keys.manifest(job.name)}: Is a directory; "
        "tried 3 times, so what this job still had to say is lost\n"
    )


def test_a_store_that_cannot_be_written_at_the_end_is_tried_again_and_then_told(job: Job) -> None:
    job.first("pack.PAUSES_S = (0.01, 0.01)")
    job.offer((lambda out: Path(out).touch(), str(job.store.root / job.keys.out)))
    code, _, err = job.run()
    assert code == 74
    assert err.startswith(f"batchport runner: the store {job.store.root} cannot write ann/out/square-7.0.result: ")
    assert err.endswith("; tried 3 times, so what this job still had to say is lost\n")


def test_a_runner_that_is_told_to_end_does_not_wait_for_the_store(job: Job, wait_until: Wait) -> None:
    job.first("pack.PAUSES_S = (300,)")
    out = job.store.root / job.keys.out
    job.offer((lambda out: Path(out).touch(), str(out)))
    runner = job.start()
    wait_until(out.exists)
    runner.terminate()
    assert runner.wait(5) == 74


def test_a_store_that_comes_back_in_time_gets_the_result(job: Job, wait_until: Wait) -> None:
    job.first("pack.PAUSES_S = (0.1,) * 100")
    out = job.store.root / job.keys.out
    job.offer((lambda out: Path(out).touch(), str(out)))
    runner = job.start()
    wait_until(out.exists)
    out.unlink()
    assert runner.wait(20) == 0
    assert job.result() is None
