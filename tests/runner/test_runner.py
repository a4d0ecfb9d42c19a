"""What the runner does with a job whose tasks go well: results, output, packs, stop markers, second runs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from ast import literal_eval
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import cloudpickle
import pytest
from tests.runner.conftest import is_alive

from batchport.envelope import Envelope
from batchport.store import OutKey

if TYPE_CHECKING:
    from tests.runner.conftest import Job

    Wait = Callable[[Callable[[], object]], None]


@pytest.mark.parametrize("inline", [True, False])
def test_a_result_is_left_in_the_store(job: Job, *, inline: bool) -> None:
    job.offer((lambda x: x * 2, 21), inline=inline)
    assert job.run() == (0, "", "")
    assert job.left() == [(0, "result")]
    assert job.result() == 42
    envelope = job.read("result")
    assert (envelope.job, envelope.task) == ("square-7", "task-0")
    assert re.fullmatch("[0-9a-f]{8}", envelope.fields["nonce"])


def test_a_call_that_needs_no_cloudpickle_does_not_wait_for_its_import(job: Job) -> None:
    job.offer((eval, "'cloud' + 'pickle' in __import__('sys').modules"))
    assert job.run()[0] == 0
    assert job.result() is False
    assert job.read("result").cloudpickle == ""


def test_in_a_pack_the_import_is_made_once_for_all(job: Job) -> None:
    loaded = "'cloud' + 'pickle' in __import__('sys').modules"
    job.offer(*[(eval, loaded)] * 2)
    assert job.run()[0] == 0
    assert [job.result(place) for place in range(2)] == [True, True]


def test_a_result_that_needs_cloudpickle_says_which_made_it(job: Job) -> None:
    job.offer(lambda: [1])
    assert job.run()[0] == 0
    assert job.result() == [1]
    assert job.read("result").cloudpickle == cloudpickle.__version__


def test_keyword_arguments_and_blobs_arrive(job: Job) -> None:
    job.offer((lambda *, x, y: x - y, 1, b"unused"), fields={"args": [], "kwargs": {"x": "big", "y": 1}})
    job.store.put(job.keys.blob("big"), cloudpickle.dumps(43))
    assert job.run()[0] == 0
    assert job.result() == 42


def test_a_blob_that_tasks_share_is_read_once(job: Job) -> None:
    job.first("get = FolderStore.get\nFolderStore.get = lambda self, key: print('get', key) or get(self, key)")
    job.offer(*[lambda: None] * 2, fields={"function": "shared"})
    manifest = job.store.get(job.keys.manifest(job.name))
    assert manifest is not None
    listed = Envelope.from_bytes(manifest, ("manifest",))
    tasks: list[dict[str, object]] = [
        {"id": each, "function": "shared", "args": [], "kwargs": {}, "time_limit_s": None} for each in ("a", "b")
    ]
    fields = {"tasks": ["a", "b"], "inline": False, "payload": {"tasks": tasks, "path": []}}
    job.store.put(job.keys.manifest(job.name), Envelope("manifest", listed.job, fields=fields).to_bytes())
    del job.env["BATCHPORT_PAYLOAD"]
    job.store.put(job.keys.blob("shared"), cloudpickle.dumps(lambda: 7))
    code, out, _ = job.run()
    assert (code, job.result(0), job.result(1)) == (0, 7, 7)
    assert out.count("get ann/blobs/shared") == 1


def test_cloudpickle_is_not_loaded_by_the_parent(job: Job) -> None:
    job.first(
        "import sys, atexit\n"
        "atexit.register(lambda: print(sorted({'cloudpickle', 'obstore', 'asyncio', 'logging'} & set(sys.modules))))"
    )
    job.offer(lambda: None)
    _, out, _ = job.run()
    assert out.splitlines()[-1] == "[]"


def test_instances_of_the_submitters_main_come_back(job: Job, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, cloudpickle\n"
        "class Point:\n"
        "    def __init__(self, x): self.x = x\n"
        "    def __eq__(self, other): return type(self) is type(other) and self.x == other.x\n"
        "def moved(point):\n"
        "    assert isinstance(point, Point)\n"
        "    class Pair(Point): pass\n"
        "    return Point(point.x + 1), Pair(5).x\n"
        "if sys.argv[1] == 'dump':\n"
        "    sys.stdout.write(repr([cloudpickle.dumps(moved), cloudpickle.dumps(Point(1))]))\n"
        "else:\n"
        "    assert cloudpickle.loads(sys.stdin.buffer.read())[0].x == 2\n"
    )
    dumped = subprocess.run([sys.executable, script, "dump"], check=True, capture_output=True, text=True).stdout
    function, point = literal_eval(dumped)
    job.offer((function, point))
    assert job.run()[0] == 0
    subprocess.run([sys.executable, script, "load"], input=job.read("result").parts[0], check=True)


def test_the_submitters_path_is_put_first(job: Job, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("mine = 'shadowed'")
    (tmp_path / "their_module.py").write_text("def f():\n    return 'theirs'")

    def f() -> str:
        import their_module  # type: ignore[import-not-found]

        return str(their_module.f()) + sys.path[0] + sys.path[1]

    job.offer(f, path=[str(tmp_path), "/second"])
    job.run()
    assert job.result() == f"theirs{tmp_path}/second"


def test_what_is_printed_goes_to_the_log_and_into_the_result(job: Job) -> None:
    def f() -> None:
        import ctypes
        import logging

        print("from print, with an umlaut: ü")
        logging.getLogger("theirs").warning("from logging")
        subprocess.run(["echo", "from a subprocess"], check=True)
        ctypes.CDLL(None).puts(b"from C")
        ctypes.CDLL(None).fflush(None)

    job.env["LC_ALL"] = "POSIX"
    job.offer(f)
    _, out, err = job.run()
    assert job.output() == "from print, with an umlaut: ü\nfrom logging\nfrom a subprocess\nfrom C\n"
    assert (out, err) == (job.output(), "")


def test_only_the_end_of_much_output_is_kept(job: Job) -> None:
    def f() -> None:
        print("ü" * 1_000_000 + "x", end="")

    job.offer(f)
    _, out, _ = job.run()
    assert len(out) == 1_000_001
    assert job.output() == "ü" * 32767 + "x"


def test_output_can_be_read_while_the_task_runs(job: Job, tmp_path: Path, wait_until: Wait) -> None:
    mark = tmp_path / "go"

    def f() -> None:
        print("begun")
        while not mark.exists():
            time.sleep(0.01)
        print("done")

    job.offer(f)
    runner = job.start()
    key = job.keys.left(OutKey(job.name, 0, "output"))
    wait_until(lambda: job.store.get(key) == b"begun\n")
    mark.touch()
    runner.communicate()
    assert job.output() == "begun\ndone\n"


def test_a_short_task_writes_no_output_object(job: Job) -> None:
    job.offer((print, "short"))
    job.run()
    assert job.left() == [(0, "result")]


def test_a_result_of_200_megabytes_travels(job: Job) -> None:
    job.offer(lambda: bytes(200_000_000))
    assert job.run()[0] == 0
    assert len(job.result()) == 200_000_000


def test_arguments_and_results_are_not_logged(job: Job) -> None:
    job.offer((lambda secret: secret, "a secret argument"))
    assert job.run() == (0, "", "")


def test_functions_see_plain_signals_an_empty_input_and_no_payload(job: Job) -> None:
    def f() -> tuple[object, ...]:
        handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)]
        plain = handlers == [signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL]
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        return plain, blocked, sys.stdin.read(), os.getpid() == os.getpgid(0), "BATCHPORT_PAYLOAD" in os.environ

    job.offer(f)
    job.run()
    assert job.result() == (True, set(), "", True, False)


def test_the_runner_is_not_what_a_function_finds_in_main(job: Job) -> None:
    def f() -> list[str]:
        return [name for name in vars(sys.modules["__main__"]) if not name.startswith("__")]

    job.offer(f)
    job.run()
    assert job.result() == []


def test_processes_of_its_own_work_in_a_function(job: Job) -> None:
    def f() -> list[int]:
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        with ProcessPoolExecutor(2, get_context("spawn")) as pool:
            return list(pool.map(abs, [-1, -2]))

    job.offer(f)
    assert job.run()[0] == 0
    assert job.result() == [1, 2]


def test_a_process_that_outlives_the_function_is_ended_and_waits_for_nobody(job: Job, wait_until: Wait) -> None:
    job.offer(lambda: subprocess.Popen(["sleep", "300"]).pid)
    assert job.run()[0] == 0
    wait_until(lambda: not is_alive(job.result()))


def test_a_daemon_that_left_the_group_and_keeps_the_pipes_open_holds_nothing_up(job: Job, wait_until: Wait) -> None:
    def f() -> int:
        return subprocess.Popen(["sh", "-c", "while :; do echo noise; done"], start_new_session=True).pid

    job.offer(f)
    assert job.run()[0] == 0
    wait_until(lambda: not is_alive(job.result()))  # of a pipe that nobody reads


def test_threads_and_exit_functions_get_their_time(job: Job, tmp_path: Path) -> None:
    def f() -> str:
        import atexit

        def slow() -> None:
            time.sleep(0.2)
            (tmp_path / "thread").touch()

        threading.Thread(target=slow).start()
        atexit.register((tmp_path / "exit").touch)
        return "returned"

    job.offer(f)
    assert job.run()[0] == 0
    assert job.result() == "returned"
    assert (tmp_path / "thread").exists()
    assert (tmp_path / "exit").exists()


def test_a_thread_that_never_ends_does_not_hold_up_the_result(job: Job) -> None:
    def f() -> str:
        threading.Thread(target=time.sleep, args=(300,)).start()
        return "returned"

    job.offer(f)
    assert job.run()[0] == 0
    assert job.result() == "returned"


def test_a_fork_that_returns_from_the_function_too_leaves_one_result(job: Job) -> None:
    def f() -> str:
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
        return "parent" if pid else "fork"

    job.offer(f)
    assert job.run()[0] == 0
    assert job.result() == "parent"


def test_each_result_of_a_pack_is_committed_before_the_next_task_starts(job: Job) -> None:
    def others(root: str) -> list[str]:
        return sorted(os.listdir(root) if os.path.exists(root) else [])  # noqa: PTH110, PTH208 - travels by value

    out = str(job.store.root / job.keys.out)
    job.offer((others, out), (others, out), (others, out))
    assert job.run()[0] == 0
    assert [job.result(place) for place in range(3)] == [
        [],
        ["square-7.0.result"],
        ["square-7.0.result", "square-7.1.result"],
    ]


def test_a_crash_in_a_pack_costs_one_task(job: Job) -> None:
    job.offer(lambda: 1, lambda: os._exit(7), lambda: 3)
    assert job.run()[0] == 1
    assert job.left() == [(0, "result"), (1, "evidence"), (2, "result")]
    assert job.read("evidence", 1).task == "task-1"
    assert (job.result(0), job.result(2)) == (1, 3)


def test_a_task_with_a_result_is_not_run_again(job: Job) -> None:
    job.offer(os.getpid, lambda: 1 / 0)
    assert job.run()[0] == 1
    before = job.read("result", 0), job.read("result", 1)
    assert job.run()[0] == 0
    assert (job.read("result", 0), job.read("result", 1)) == before
    assert job.left() == [(0, "result"), (1, "result")]


def test_a_task_with_a_stop_marker_is_not_started(job: Job) -> None:
    job.offer(lambda: 1, lambda: 2)
    job.stop(0)
    assert job.run()[0] == 0
    assert job.left() == [(0, "stopped"), (1, "result")]
    assert job.read("stopped").job == "square-7"


def test_a_running_task_is_ended_by_a_stop_marker_with_all_it_started(
    job: Job, tmp_path: Path, wait_until: Wait
) -> None:
    mark = tmp_path / "pid"

    def f() -> None:
        child = subprocess.Popen(["sleep", "300"])
        time.sleep(0.5)  # the first looks find no marker
        mark.write_text(f"{child.pid} ")
        time.sleep(300)

    job.first("pack.STOPS_S = 0.05")
    job.offer(f, lambda: 2)
    runner = job.start()
    wait_until(lambda: mark.exists() and mark.read_text().endswith(" "))
    job.stop(0)
    assert runner.wait(20) == 0
    assert job.left() == [(0, "stopped"), (1, "result")]
    wait_until(lambda: not is_alive(int(mark.read_text())))


def test_a_job_without_a_manifest_is_superseded_and_runs_nothing(job: Job) -> None:
    job.offer(lambda: 1)
    job.store.delete([job.keys.manifest(job.name)])
    code, out, err = job.run()
    assert (code, out) == (0, "")
    assert err == (
        "batchport runner: job square-7 has no manifest any more: its worker is done with it, and nothing is run\n"
    )
    assert job.left() == []


def test_a_second_run_leaves_the_first_result_and_a_record(job: Job) -> None:
    first = Envelope("result", job.name, "task-0", (b"first", b""), {"nonce": "00000000"})

    def f(root: str, key: str, data: bytes) -> str:
        from batchport.store import FolderStore

        FolderStore(Path(root)).put(key, data)
        return "second"

    key = job.keys.left(OutKey(job.name, 0, "result"))
    job.offer((f, str(job.store.root), key, cloudpickle.dumps(first.to_bytes())))
    assert job.run()[0] == 0
    assert job.left() == [(0, "result"), (0, "second")]
    assert job.read("result") == first
    assert job.fields("second") == {"first": "00000000"}


def test_a_runner_that_is_told_exists_of_its_own_result_sees_that_it_was_itself(job: Job) -> None:
    job.first("put = FolderStore.put\nFolderStore.put = lambda *a, **k: put(*a, **k) and not k.get('create')")
    job.offer(lambda: 1)
    assert job.run()[0] == 0
    assert job.left() == [(0, "result")]


def test_the_input_is_never_deleted(job: Job) -> None:
    job.offer((lambda x: x, 1, 2), fields={"args": ["blob"]}, inline=False)
    job.store.put(job.keys.blob("blob"), cloudpickle.dumps(1))
    job.run()
    assert job.store.exists(job.keys.manifest(job.name))
    assert job.store.exists(job.keys.blob("blob"))


def test_a_runner_that_is_killed_takes_its_task_and_all_it_started_along(
    job: Job, tmp_path: Path, wait_until: Wait
) -> None:
    mark = tmp_path / "pids"

    def f() -> None:
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        mark.write_text(f"{os.getpid()} {subprocess.Popen(['sleep', '300']).pid} ")
        time.sleep(300)

    job.offer(f)
    runner = job.start()
    wait_until(lambda: mark.exists() and mark.read_text().endswith(" "))
    runner.kill()
    wait_until(lambda: not any(is_alive(int(pid)) for pid in mark.read_text().split()))


OBSTORE_ON_A_FOLDER = """
import atexit, os, sys
import batchport.runner.remote as remote
import batchport.store as store_module

def an_object_store_on_a_folder(url):
    from obstore.store import LocalStore, MemoryStore
    store = store_module.ObjectStore("memory://" + url)
    store._store = LocalStore(url.removeprefix("s3://bucket"), mkdir=True)
    return store

remote.open_store = an_object_store_on_a_folder
runner = os.getpid()
atexit.register(lambda: os.getpid() == runner and print("obstore" in sys.modules))
"""


def test_a_function_may_use_obstore_though_the_runner_does(job: Job) -> None:
    def f(folder: str, text: str) -> bytes:
        from obstore.store import LocalStore

        store = LocalStore(folder)
        store.put("theirs", text.encode())
        return bytes(store.get("theirs").bytes())

    job.first(OBSTORE_ON_A_FOLDER)
    job.env["BATCHPORT_STORE"] = f"s3://bucket{job.store.root}"
    job.offer((f, str(job.store.root), "one"), (f, str(job.store.root), "two"), lambda: os._exit(7))
    assert job.run() == (1, "False\n", "")
    assert job.left() == [(0, "result"), (1, "result"), (2, "evidence")]
    assert (job.result(0), job.result(1)) == (b"one", b"two")


def test_the_process_that_talks_to_an_object_store_outlives_a_sigterm_and_not_the_runner(
    job: Job, tmp_path: Path, wait_until: Wait
) -> None:
    def f() -> None:
        (tmp_path / "running").touch()
        time.sleep(300)

    job.first(OBSTORE_ON_A_FOLDER)
    job.env["BATCHPORT_STORE"] = f"s3://bucket{job.store.root}"
    job.offer(f)
    runner = job.start()
    wait_until((tmp_path / "running").exists)
    children = [int(pid) for pid in Path(f"/proc/{runner.pid}/task/{runner.pid}/children").read_text().split()]
    assert len(children) == 2
    for pid in (children[0], runner.pid):
        os.kill(pid, signal.SIGTERM)
    assert runner.wait(20) == 143
    assert job.left() == [(0, "evidence")]
    wait_until(lambda: not any(map(is_alive, children)))
