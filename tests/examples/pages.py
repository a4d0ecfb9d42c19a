"""What tests of the documentation's pages share: a page in pieces, and a reader who does what it says.

Nothing is changed but addresses and folders, and where batchport comes from. Each line that a page shows must be
printed, but for times and addresses in memory; a line of three dots stands for any lines.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from tests.examples.on_slurm import until
from tests.hosts.scaler_cluster import Client, free_address, is_open

__all__ = ["ROOT", "Block", "Page", "Reader"]

ROOT = Path(__file__).resolve().parents[2]
SECTION = re.compile(r"^## (.*?)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
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


class Page:
    """A page of the documentation, by sections."""

    def __init__(self, name: str) -> None:
        self.text = (ROOT / "docs" / name).read_text("utf-8")
        self._sections = dict(SECTION.findall(self.text))

    def blocks(self, section: str) -> list[Block]:
        return [Block(*found) for found in BLOCK.findall(self._sections[section])]


class Reader:
    """Does what a page says, in a folder of its own, and keeps what runs on running.

    site: where packages are installed that the page installs. swaps: words of the page, and what they are here.
    varying: words of the page's outputs, and the patterns of what may stand there.
    """

    def __init__(  # noqa: PLR0913 - a page, and what differs here
        self,
        page: Page,
        folder: Path,
        env: Mapping[str, str],
        site: Path,
        *,
        swaps: Mapping[str, str] = {},
        varying: Mapping[str, str] = {},
    ) -> None:
        self.page, self.folder = page, folder
        self.shared = folder / "shared"
        self.shared.mkdir(exist_ok=True)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.env: Mapping[str, str] = {**env, "PATH": path, "PYTHONPATH": str(site)}
        self.scheduler, self._storage = addresses()
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._varying = varying
        self._swaps = {
            **swaps,
            SCHEDULER: self.scheduler,
            STORAGE: self._storage,
            "/shared/venv/bin": str(Path(sys.executable).parent),
            "/shared": str(self.shared),
            "/home/ann": str(self.folder),
            "PATH-OR-URL-OF-BATCHPORT": str(ROOT),
            "uvx copier": "copier",
            "pip install ./": f"uv pip install --python {sys.executable} --no-deps --target {site} ./",
        }

    def here(self, text: str) -> str:
        """Return a text of the page with this reader's addresses and folders."""
        return re.sub("|".join(map(re.escape, self._swaps)), lambda found: self._swaps[found[0]], text)

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
        for block in self.page.blocks(section):
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
            text = re.escape(line).replace(r"\.\.\.", ".*")
            for words, pattern in self._varying.items():
                text = text.replace(re.escape(words), pattern)
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
