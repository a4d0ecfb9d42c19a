"""`batchport worker`, as a user starts it: beside a real scheduler, on the local backend."""

from __future__ import annotations

import importlib
import inspect
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import cloudpickle
import pytest
from tests.hosts.scaler_cluster import Client, free_address, new_scheduler

from batchport.settings import read_config
from batchport.worker_command import worker

cloudpickle.register_pickle_by_value(sys.modules[__name__])

PROGRAM = "from batchport.cli import main\nsys.argv[0] = 'batchport'\nmain()"
NOTHING = "0 waiting, 0 in jobs, 0 done, 0 failed (jobs: 0)"
ONE_DONE = "0 waiting, 0 in jobs, 1 done, 0 failed (jobs: 1)"
TOLD_AT_ONCE = "import batchport.serving\nbatchport.serving._TOLD_S = 0"


def square(number: int) -> int:
    return number * number


def hold(folder: str) -> str:
    """Leave a mark, and wait until there is a file called go."""
    with Path(folder, "ran").open("a") as file:
        file.write("once\n")
    while not Path(folder, "go").exists():
        time.sleep(0.05)
    return folder


class Place:
    """A folder that a task leaves its mark in, and waits in."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.go = str(folder), (folder / "go").touch
        self._mark = folder / "ran"

    @property
    def runs(self) -> int:
        return self._mark.read_text().count("once") if self._mark.exists() else 0


class Command:
    """The command, running."""

    def __init__(self, folder: Path, *flags: str, before: str = "", stderr: int | None = None) -> None:
        self._log = folder / f"said-{time.monotonic_ns()}"
        argv = (sys.executable, "-c", f"import sys\n{before}\n{PROGRAM}", "worker", *flags)
        env = os.environ | {"HOME": str(folder), "PYTHONPATH": str(folder), "COLUMNS": "200"}
        with self._log.open("wb") as file:
            self._process = subprocess.Popen(argv, stderr=file if stderr is None else stderr, cwd=folder, env=env)
        self.pid, self.wait, self.signal = self._process.pid, self._process.wait, self._process.send_signal

    @property
    def said(self) -> str:
        return self._log.read_text("utf-8")

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


Start = Callable[..., Command]


def until(holds: Callable[[], object], command: Command) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, command.said
        time.sleep(0.02)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the command on a scheduler, with jobs and store in the test's folder; what still runs then is ended."""
    started = list[Command]()

    def start(scheduler: str, *flags: str, name: str = "farm", before: str = "", stderr: int | None = None) -> Command:
        own = ("--backend", "local", "--option", f"folder={tmp_path / 'jobs'}", "--store", "store", "--name", name)
        started.append(Command(tmp_path, "--scheduler", scheduler, *own, *flags, before=before, stderr=stderr))
        return started[-1]

    yield start
    for each in started:
        each.end()


@pytest.fixture
def nobody() -> Iterator[str]:
    """Give an address where something listens that never answers."""
    with closing(socket.socket()) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"tcp://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[str]:
    with new_scheduler(tmp_path) as scheduler:
        yield scheduler


def test_a_worker_that_a_file_describes_serves_a_client_and_a_flag_wins_over_the_file(
    scheduler: str, tmp_path: Path
) -> None:
    (tmp_path / "farm.toml").write_text(f"""
        scheduler = "{scheduler}"
        backend = "local"
        store = "~/store"
        name = "from-the-file"
        max_jobs = 3
        launcher = "env SEEN=launched"
        setup = '''
        export LINES_RAN=yes
        export TWICE=$LINES_RAN,$LINES_RAN
        '''
        capabilities = ["tapes"]
        [options]
        folder = "{tmp_path / "jobs"}"
        slots = 1
        [resources]
        cpus = 2
        time_limit_s = 60
    """)
    command = Command(tmp_path, "--config", "farm.toml", "--name", "farm", "--option", "slots=2")
    try:
        client = Client(scheduler)

        seen = client.submit_verbose(_environment, (), {}, capabilities={"tapes": 1}).result()

        assert seen == ("launched", "yes,yes"), command.said
        client.shutdown()
        assert command.wait(20) == 0
    finally:
        command.end()
    assert (tmp_path / "store" / "farm").is_dir()
    first, *_, last = command.said.splitlines()
    said = f"INFO the worker farm runs tasks of {scheduler} as jobs of local, by the store file://{tmp_path}/store"
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d {re.escape(said)}", first)
    assert last.endswith("a client has shut down the cluster; the worker farm has ended: " + ONE_DONE)


def _environment() -> tuple[str, str]:
    return os.environ["SEEN"], os.environ["TWICE"]


def test_modules_that_are_not_installed_in_jobs_are_found_where_the_flag_says(
    scheduler: str, tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "only_the_client_has_it.py").write_text("def answer(): return 42")
    monkeypatch.syspath_prepend(tmp_path / "code")
    module = importlib.import_module("only_the_client_has_it")
    with Client(scheduler) as client:
        start(scheduler, "--code", str(tmp_path / "code"))

        assert client.submit(module.answer).result() == 42


def test_the_operator_is_told_of_failures_that_are_not_the_functions_and_not_of_each(
    scheduler: str, start: Start
) -> None:
    with Client(scheduler) as client:
        command = start(scheduler)
        for function in (_raise, _crash, _crash):
            with pytest.raises(Exception, match=r"of its own|SIGKILL"):
                client.submit(function).result()
    until(lambda: "a task failed" in command.said, command)
    (told,) = [line.partition(" WARNING ")[2] for line in command.said.splitlines() if "a task failed" in line]
    assert told == (
        "a task failed; others that fail so are told of in 60 s at the earliest: "
        "The task's process was ended by SIGKILL (Killed). [crash]"
    )


def _raise() -> None:
    raise ValueError("of its own")


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_told_to_end_waits_for_what_runs_and_another_one_gets_the_rest(
    scheduler: str, tmp_path: Path, start: Start
) -> None:
    # With one job of up to two tasks, the second one waits in the worker if it comes while the first one runs.
    drained = start(scheduler, "--max-jobs", "1", "--tasks-per-job", "2", before=TOLD_AT_ONCE)
    running, waiting = Place(tmp_path / "running"), Place(tmp_path / "waiting")
    with Client(scheduler) as client:
        futures = [client.submit(hold, running.folder)]
        until(lambda: running.runs, drained)
        futures.append(client.submit(hold, waiting.folder))
        until(lambda: "farm serving: 1 waiting, 1 in jobs" in drained.said, drained)

        drained.signal(signal.SIGTERM)

        until(lambda: "draining" in drained.said, drained)
        assert (
            "INFO SIGTERM: draining; nothing more is started. Tasks in jobs, which are waited for: 1. "
            "A second signal leaves at once, and the jobs live on\n"
        ) in drained.said
        other = start(scheduler, name="other")
        until(lambda: waiting.runs, other)
        waiting.go()
        running.go()
        assert drained.wait(20) == 0, drained.said
        assert [future.result() for future in futures] == [running.folder, waiting.folder]
    assert drained.said.endswith(f"drained; the worker farm has ended: {ONE_DONE}\n")
    assert (running.runs, waiting.runs) == (1, 1)


def test_a_second_signal_leaves_at_once_and_the_next_start_has_the_job_again(
    scheduler: str, tmp_path: Path, start: Start
) -> None:
    place = Place(tmp_path / "place")
    with Client(scheduler) as client:
        left, future = start(scheduler), client.submit(hold, place.folder)
        until(lambda: place.runs, left)
        left.signal(signal.SIGTERM)
        until(lambda: "draining" in left.said, left)

        left.signal(signal.SIGINT)

        assert left.wait(20) == 128 + signal.SIGINT
        assert left.said.endswith(
            "INFO SIGINT: leaving; tasks whose jobs live on: 1. The next start under the name farm has them again\n"
        )
        again = start(scheduler)
        until(lambda: "has answered" in again.said, again)
        place.go()
        assert future.result() == place.folder
    assert place.runs == 1


def test_a_worker_without_a_scheduler_does_not_wait_for_jobs_of_an_earlier_start(
    scheduler: str, nobody: str, tmp_path: Path, start: Start
) -> None:
    place = Place(tmp_path / "place")
    with Client(scheduler) as client:
        killed, future = start(scheduler), client.submit(hold, place.folder)
        until(lambda: place.runs, killed)
        killed.end()
        again = start(nobody)
        until(lambda: "has not answered yet" in again.said, again)

        again.signal(signal.SIGTERM)

        assert again.wait(20) == 0
        assert "SIGTERM: draining; nothing more is started. Tasks in jobs, which are waited for: 0." in again.said
        place.go()
        start(scheduler)
        assert future.result() == place.folder
    assert place.runs == 1


def test_a_worker_that_has_nothing_ends_at_the_first_signal_even_without_a_scheduler(start: Start, nobody: str) -> None:
    command = start(nobody)
    until(lambda: "has not answered yet" in command.said, command)

    command.signal(signal.SIGINT)

    assert command.wait(20) == 0
    assert command.said.endswith(f"drained; the worker farm has ended: {NOTHING}\n")


def test_a_third_signal_ends_a_worker_whose_leaving_has_got_stuck(start: Start, nobody: str) -> None:
    stuck = (
        "import asyncio, contextlib, batchport.hosts._scaler_link as link\n"
        "async def leave(self):\n"
        "    while True:\n"
        "        with contextlib.suppress(asyncio.CancelledError): await asyncio.sleep(60)\n"
        "link.Link.leave = leave"
    )
    command = start(nobody, before=stuck)
    until(lambda: "has not answered yet" in command.said, command)
    command.signal(signal.SIGINT)
    until(lambda: "draining" in command.said, command)
    command.signal(signal.SIGINT)
    until(lambda: "leaving" in command.said, command)

    command.signal(signal.SIGINT)

    assert command.wait(20) == -signal.SIGINT


def test_without_a_terminal_a_line_tells_how_things_are_when_that_has_changed(scheduler: str, start: Start) -> None:
    command = start(scheduler, before=TOLD_AT_ONCE)
    with Client(scheduler) as client:
        assert client.submit(square, 3).result() == 9
    until(lambda: f"farm serving: {ONE_DONE}" in command.said, command)
    lines = [line.partition(" INFO ")[2] for line in command.said.splitlines()]
    told = [line for line in lines if line.startswith("farm ")]
    assert len(told) == len(set(told)), "the same twice"


def test_on_a_terminal_one_line_is_drawn_anew_below_what_is_told(scheduler: str, start: Start) -> None:
    ours, theirs = pty.openpty()
    command = start(scheduler, stderr=theirs)
    os.close(theirs)
    drawn = ""
    while f"farm serving: {NOTHING}" not in drawn:
        drawn += os.read(ours, 4096).decode()
    command.signal(signal.SIGINT)
    with suppress(OSError):  # the terminal's other end is closed
        while more := os.read(ours, 4096):
            drawn += more.decode()
    assert command.wait(20) == 0
    lines = drawn.replace("\x1b[2K", "").splitlines()
    assert any(line.strip().endswith("has answered") for line in lines), drawn
    assert "farm connecting: 0 waiting" in drawn


def failing(start: Start, scheduler: str = "tcp://127.0.0.1:1", *flags: str, before: str = "") -> str:
    """Return the last line that a worker says that fails."""
    command = start(scheduler, *flags, before=before)
    assert command.wait(40) == 1, command.said
    *_, last = command.said.splitlines()
    return last


def test_a_scheduler_that_is_not_there_is_named(start: Start, nobody: str) -> None:
    soon = "import batchport.hosts._scaler_link as link\nlink._UNREACHED_S = 1"
    assert re.fullmatch(
        f"batchport: the Scaler scheduler at {nobody} cannot be reached: what listens there has not answered for . s, "
        "so it may be something else. Jobs that run live on: start the worker again under its name once it is there",
        failing(start, nobody, before=soon).splitlines()[-1],
    )


def test_an_address_that_is_none_is_refused(start: Start) -> None:
    said = failing(start, "localhost")
    assert said == "batchport: scheduler='localhost' is no address; write it like tcp://10.0.0.1:6378"


@pytest.mark.parametrize(
    ("gone", "version", "found"),
    [
        ("scaler", "def version(name): raise metadata.PackageNotFoundError", "it is not installed"),
        ("scaler.protocol.capnp", "version = lambda name: '1.26.7'", "1.26.7 is installed"),
    ],
    ids=["no release", "another release"],
)
def test_without_a_scaler_that_fits_the_worker_says_what_to_install(
    start: Start, gone: str, version: str, found: str
) -> None:
    before = (
        f"import importlib.metadata as metadata\nsys.modules[{gone!r}] = None\n{version}\nmetadata.version = version"
    )
    assert failing(start, before=before).startswith(
        f"batchport: batchport.hosts.scaler needs opengris-scaler 2.8 or 2.9, and {found}: "
        "pip install 'batchport[scaler]' ("
    )


def test_what_must_be_given_is_asked_for(tmp_path: Path) -> None:
    asked = list[str]()
    for flags in ((), ("--scheduler", "tcp://10.0.0.1:6378")):
        command = Command(tmp_path, *flags)
        assert command.wait(20) == 1
        asked.append(command.said)
    url = "tcp://10.0.0.1:6378"
    assert asked == [
        f"batchport: no scheduler is given: write --scheduler {url}, or scheduler = '{url}' in a --config file\n",
        "batchport: no backend is given: write --backend local, or backend = 'local' in a --config file\n",
    ]


def test_an_unknown_backend_is_refused_with_what_is_near(start: Start) -> None:
    assert failing(start, "tcp://127.0.0.1:1", "--backend", "lokal").startswith(
        "batchport: no backend is called 'lokal'; did you mean 'local'? installed are: "
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--max-jobs", "0"), "max_jobs=0: must be at least 1"),
        (("--cpus", "0"), "Resources(cpus=0): must be a whole number of at least 1"),
        (("--launcher", "srun 'a"), '--launcher "srun \'a": No closing quotation'),
        (("--log-level", "loud"), "--log-level 'loud': must be one of debug, info, warning, error"),
        (("--option", "slots"), "--option 'slots': write it as NAME=VALUE"),
        (
            ("--store", "memory://x"),
            (
                "--store memory://x is in this process's memory, where no job can reach it: give a folder's path, "
                "or the URL of an object store"
            ),
        ),
        (("--store", "farm.toml/store"), "the store {folder}/farm.toml/store cannot read farm/birth: Not a directory"),
    ],
)
def test_a_flag_that_cannot_work_is_refused(start: Start, tmp_path: Path, flags: tuple[str, ...], words: str) -> None:
    (tmp_path / "farm.toml").touch()
    assert failing(start, "tcp://127.0.0.1:1", *flags) == "batchport: " + words.format(folder=tmp_path)


@pytest.fixture
def elsewhere(tmp_path: Path) -> str:
    """Install a backend whose jobs are not known to run on this machine."""
    about = tmp_path / "elsewhere-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[batchport.backends]\nelsewhere = batchport.backends.local:LocalAdapter\n")
    return "elsewhere"


def test_a_backend_whose_jobs_run_elsewhere_needs_a_store(start: Start, elsewhere: str) -> None:
    assert failing(start, "tcp://127.0.0.1:1", "--backend", elsewhere, "--store", "") == (
        "batchport: the backend 'elsewhere' needs a store that its jobs can reach: "
        "give --store a folder's path or a URL"
    )


def test_a_store_among_this_machines_temporary_files_is_doubted_where_jobs_run_elsewhere(
    start: Start, elsewhere: str, tmp_path: Path
) -> None:
    command = start(
        free_address(), "--backend", elsewhere, before=f"import tempfile\ntempfile.tempdir = {str(tmp_path)!r}"
    )
    until(lambda: "runs tasks of" in command.said, command)
    assert command.said.splitlines()[0].endswith(
        f"WARNING the store {tmp_path}/store is in this machine's folder for temporary files; "
        "jobs on machines that do not share it fail"
    )


def test_the_local_backend_needs_neither_store_nor_name(tmp_path: Path) -> None:
    command = Command(tmp_path, "--scheduler", free_address(), "--backend", "local", "--option", "folder='jobs'")
    until(lambda: "runs tasks of" in command.said, command)
    command.end()
    store = f"file://{tmp_path}/.batchport/store"
    assert re.search(rf"the worker local-\S+ runs .* as jobs of local, by the store {store}\n", command.said)


def test_a_name_that_is_running_is_refused(start: Start, scheduler: str) -> None:
    first = start(scheduler)
    until(lambda: "has answered" in first.said, first)
    assert failing(start, scheduler) == (
        f"batchport: a worker named 'farm' is already running on this store, as process {first.pid} on this machine; "
        "end it first, or choose another name for this one"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_job = 3", "unknown key max_job; did you mean max_jobs? the keys are: scheduler, backend, store, "),
        ("cpus = 3", "unknown key cpus; it belongs under [resources]; the keys are: scheduler, "),
        (
            "[resources]\ncores = 3",
            "unknown key resources.cores; the keys of [resources] are: cpus, memory_mib, gpus, ",
        ),
        ("max_jobs = '3'", "max_jobs = '3': must be a whole number"),
        ("max_jobs = true", "max_jobs = True: must be a whole number"),
        ("name = 3", "name = 3: must be a string"),
        ("capabilities = 'gpu'", "capabilities = 'gpu': must be a list of strings"),
        ("capabilities = [3]", "capabilities = [3]: must be a list of strings"),
        ("options = 3", "options = 3: must be a table"),
        ("[resources]\ncpus = 'two'", "resources.cpus = 'two': must be a whole number"),
        ("log_level = 'loud'", "log_level = 'loud': must be one of debug, info, warning, error"),
    ],
)
def test_a_mistake_in_the_file_is_named_by_file_and_key(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "farm.toml").write_text(text)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{tmp_path}/farm.toml: {words}')}"):
        read_config(tmp_path / "farm.toml")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("max_jobs 3")
    said = []
    for name in ("none.toml", "broken.toml"):
        command = Command(tmp_path, "--config", name)
        assert command.wait(20) == 1
        said.append(command.said)
    assert said == [
        "batchport: --config none.toml: No such file or directory\n",
        "batchport: broken.toml is no TOML file: Expected '=' after a key in a key/value pair (at line 1, column 10)\n",
    ]


def test_whatever_a_flag_says_the_file_can_say_too(tmp_path: Path) -> None:
    flags = set(inspect.signature(worker).parameters) - {"context", "config"}
    (tmp_path / "farm.toml").write_text("nothing = 0\n[resources]\nnothing = 0")
    keys = set[str]()
    for text in ("nothing = 0", "[resources]\nnothing = 0"):
        (tmp_path / "farm.toml").write_text(text)
        with pytest.raises(ValueError, match="unknown key") as raised:
            read_config(tmp_path / "farm.toml")
        keys |= set(str(raised.value).rpartition("are: ")[2].split(", "))
    assert keys - {"resources", "extra"} == flags
