"""The page "your Scaler cluster on Slurm": its commands and scripts, on a real scheduler and the real Slurm.

Nothing is changed but addresses and folders, and where batchport comes from. Each line that the page shows must be
printed, but for times and addresses in memory; a line of three dots stands for any lines.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from configparser import ConfigParser
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.examples.on_slurm import Env, said, until
from tests.hosts.scaler_cluster import Client, free_address, is_open

pytestmark = pytest.mark.timeout(180)

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "scaler.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
BLOCK = re.compile(r'^```(\w*)(?: title="([^"]*)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
SCHEDULER, STORAGE = "tcp://10.0.0.1:6378", "tcp://10.0.0.1:6379"
TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")


@dataclass(frozen=True)
class Block:
    """One fenced block of a section: its language, its title, and its text."""

    language: str
    title: str
    text: str

    @property
    def commands(self) -> list[tuple[str, str]]:
        """The commands of a console block, each with what the page shows of its output."""
        each = self.text.replace("\\\n", "").removeprefix("$ ").split("\n$ ")
        return [(command, shown) for command, _, shown in (text.partition("\n") for text in each)]


def blocks(section: str) -> list[Block]:
    return [Block(*found) for found in BLOCK.findall(SECTIONS[section])]


SERVERS, WORKER = blocks("Start it")


class Reader:
    """Does what the page says, in a folder of its own, and keeps what runs on running."""

    def __init__(self, folder: Path, slurm: Env, site: Path) -> None:
        self.folder, self._site = folder, site
        self.shared = folder / "shared"
        self.shared.mkdir(exist_ok=True)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.env: Mapping[str, str] = {**slurm, "PATH": path, "PYTHONPATH": str(site)}
        self.scheduler, self._storage = addresses()
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def here(self, text: str) -> str:
        """Return a text of the page with this reader's addresses and folders."""
        ours = {
            SCHEDULER: self.scheduler,
            STORAGE: self._storage,
            "/shared/venv/bin": str(Path(sys.executable).parent),
            "/shared": str(self.shared),
            "/home/ann": str(self.folder),
            "PATH-OR-URL-OF-BATCHPORT": str(ROOT),
            "uvx copier": "copier",
            "pip install ./": f"uv pip install --python {sys.executable} --no-deps --target {self._site} ./",
        }
        return re.sub("|".join(map(re.escape, ours)), lambda found: ours[found[0]], text)

    def write(self, block: Block) -> None:
        """Write a block into the file that its title names."""
        (self.folder / self.here(block.title)).write_text(self.here(block.text), encoding="utf-8")

    def run(self, command: str, shown: str) -> None:
        """Run a command to its end; it must print what is shown, and nothing else."""
        argv = shlex.split(self.here(command))
        done = subprocess.run(argv, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
        assert not shown or self.pattern(shown).fullmatch(plain(done.stdout)), f"{shown}\nis shown, and\n{done.stdout}"

    def start(self, command: str, shown: str = "") -> subprocess.Popen[bytes]:
        """Start a command that stays, and wait until it has printed what is shown, among other lines."""
        argv = shlex.split(self.here(command))
        what = f"{Path(argv[0]).name}-{len(self.running)}"
        with (self.folder / what).open("wb") as log:
            process = subprocess.Popen(argv, cwd=self.folder, env=self.env, stdout=log, stderr=subprocess.STDOUT)
        self.running[what] = process
        if "server" in what:
            until(f"{what} to listen", lambda: is_open(self._storage))
        elif "scheduler" in what:
            until(f"{what} to listen", lambda: is_open(self.scheduler))
        until(f"{what} to print\n{shown}", lambda: self.prints(process, shown))
        return process

    def prints(self, process: subprocess.Popen[bytes], shown: str) -> bool:
        """Return whether it has printed what is shown; fail if it never will."""
        is_over = process.poll() is not None
        found = self.pattern(shown).search(self.printed(process)) is not None
        assert found or not is_over, f"{shown}\nis shown, and it ended with\n{self.printed(process)}"
        return found

    def printed(self, process: subprocess.Popen[bytes]) -> str:
        (what,) = (what for what, each in self.running.items() if each is process)
        return plain((self.folder / what).read_text("utf-8"))

    def follow(self, section: str) -> list[subprocess.Popen[bytes]]:
        """Do all that a section says; return what it has started that stays."""
        started = []
        for block in blocks(section):
            if block.title:
                self.write(block)
            elif block.language == "console":
                for command, shown in block.commands:
                    if command.startswith(("scaler_", "batchport worker")):
                        started.append(self.start(command, shown))
                    else:
                        self.run(command, shown)
        return started

    def pattern(self, shown: str) -> re.Pattern[str]:
        """Return what fits all outputs that a reader would take for the one that is shown."""
        lines = []
        for line in plain(self.here(shown)).splitlines(keepends=True):
            text = re.escape(line).replace(r"\.\.\.", ".*").replace("on\\ n1", r"on\ n\d")
            lines.append(r"(?:.*\n)*?" if line == "...\n" else text)
        return re.compile("".join(lines))

    def stop(self) -> None:
        """End all that runs, and all jobs, as a client's shutdown does where there is a scheduler."""
        alive = {what: process for what, process in self.running.items() if process.poll() is None}
        if any("scheduler" in what for what in alive):
            Client(self.scheduler).shutdown()
            for process in (process for what, process in alive.items() if "batchport" in what):
                process.wait(30)
        for process in alive.values():
            process.terminate()
        for process in alive.values():
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def addresses() -> tuple[str, str]:
    """Return the scheduler's address and the storage's, one port up; the scheduler takes the second one up as well."""
    while True:
        scheduler = free_address()
        port = int(scheduler.rpartition(":")[2])
        with ExitStack() as stack:
            try:
                for above in (1, 2):
                    stack.enter_context(closing(socket.socket())).bind(("127.0.0.1", port + above))
            except (OSError, OverflowError):
                continue
        return scheduler, f"tcp://127.0.0.1:{port + 1}"


def plain(text: str) -> str:
    """Return a text without times, and without the lines of carets, which differ between releases of Python."""
    return re.sub(r"^[ ^~]*[\^~]\n", "", TIME.sub("TIME", text), flags=re.MULTILINE)


@pytest.fixture(scope="module")
def site(slurm: Env, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install what the page says, with this checkout as batchport, and look at it by `batchport doctor`."""
    folder = tmp_path_factory.mktemp("install")
    reader, first = Reader(folder, slurm, folder / "site"), "pip install 'batchport[scaler,cli]'"
    for block in blocks("Install"):
        assert block.commands[0] == (first, "")
        for command, shown in block.commands[1:]:
            reader.run(command, shown)
    return folder / "site"


@pytest.fixture
def reader(slurm: Env, site: Path, tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path, slurm, site)
    yield reader
    reader.stop()


def jobs(env: Env) -> list[str]:
    """Return the states of a Scaler worker's jobs that are not over."""
    listed = (line.split() for line in said(env, "squeue", "--me", "-h", "-r", "-o", "%j %T").splitlines())
    return [state for name, state in listed if name.startswith("scaler-")]


def test_a_client_gets_results_failures_and_cancels_as_the_page_says(reader: Reader) -> None:
    reader.follow("Start it")
    for section in ("Run a client", "When a task fails", "Cancel"):
        reader.follow(section)
    until("the cancelled jobs to end", lambda: not jobs(reader.env))


def test_a_worker_that_is_killed_and_started_again_has_its_jobs_again(reader: Reader) -> None:
    *_, worker = reader.follow("Start it")
    script, run, words = blocks("Stop the worker, and start it again")
    reader.write(script)
    ((command, shown),) = run.commands
    client = reader.start(command)
    until("the jobs to run", lambda: jobs(reader.env).count("RUNNING") == 4)

    worker.kill()
    worker.wait()
    ((again, _),) = WORKER.commands
    reader.start(again, words.text)

    assert client.wait(60) == 0
    assert reader.pattern(shown).fullmatch(reader.printed(client))
    assert len(list((reader.shared / "logs").iterdir())) == 4, "each job has a log, and no task ran in two"


def test_the_service_serves_and_ends_in_words_when_the_scheduler_is_gone(reader: Reader) -> None:
    config, unit, words = blocks("As a service")
    _, scheduler = (reader.start(command) for command, _ in SERVERS.commands)
    reader.write(config)
    service = ConfigParser(interpolation=None)
    service.read_string(unit.text)
    worker = reader.start(service["Service"]["ExecStart"], WORKER.commands[0][1])
    reader.follow("Run a client")

    scheduler.terminate()

    assert worker.wait(30) == 1
    assert reader.pattern(words.text).search(reader.printed(worker))


def test_clients_choose_between_backends_by_capabilities(reader: Reader) -> None:
    (storage, _), _ = SERVERS.commands
    reader.start(storage)
    reader.follow("Several backends")
