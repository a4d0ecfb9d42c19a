"""The page "your first backend": what it says is what its reader gets, on the real Task Spooler."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.statements import statements
from tests.tutorial import page

ROOT = Path(__file__).resolve().parents[2]

# These run whole conformance suites, each of about 25 s on a machine that has nothing else to do.
pytestmark = pytest.mark.timeout(300)


def test_a_reader_who_follows_the_page_gets_what_it_says(environment: Mapping[str, str], tmp_path: Path) -> None:
    folder, took_back = tmp_path / "reader", {}
    folder.mkdir()
    for block in page.blocks():
        if block.language == "python":
            if block.remark == page.WRONG:
                took_back = {folder / block.file: (folder / block.file).read_text(encoding="utf-8")}
            page.write(block, folder)
            continue
        for command, shown in page.commands(block):
            if command.startswith("cd "):
                folder /= command.removeprefix("cd ")
            elif not command.startswith("sudo "):
                said = run(command, folder, environment)
                assert_shown(command, shown, said)
        for path, text in took_back.items():
            path.write_text(text, encoding="utf-8")
        took_back = {}


def test_the_finished_adapter_passes_the_suite_on_a_queue_of_two_slots(
    scaffold: Path, environment: Mapping[str, str]
) -> None:
    # The reader's queue has one. With two a job begins, and may be cancelled, while it is still being submitted.
    subprocess.run(("tsp", "-S", "2"), env=environment, check=True)
    command = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:asyncio", "-p", "no:xdist")
    done = subprocess.run(command, cwd=scaffold, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    # tsp has no arrays, and so none of the cases about them.
    summary = re.sub(r"^- limits\.array_size is 1.*\n(?:    .*\n)+", "", done.stdout, flags=re.MULTILINE)
    not_run = re.findall(r"^    (test_\w+.*)$", summary, re.MULTILINE)
    assert not_run == ["test_many_are_cancelled_at_once", "test_a_memory_limit_is_told_from_a_crash"], done.stdout


def test_the_finished_adapter_is_clean_under_ruff_and_strict_mypy(scaffold: Path) -> None:
    for tool in (("ruff", "check", "--no-cache"), ("ruff", "format", "--check", "--no-cache"), ("mypy",)):
        done = subprocess.run((sys.executable, "-m", *tool), cwd=scaffold, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_finished_scaffold_has_at_most_50_statements(scaffold: Path) -> None:
    assert statements(scaffold) <= 50


def run(command: str, folder: Path, environment: Mapping[str, str]) -> str:
    """Run a command of the page in a shell, with this checkout for batchport, and return all that it printed."""
    command = command.replace("uvx copier", "copier").replace("PATH-OR-URL-OF-BATCHPORT", str(ROOT))
    return subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env=environment,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ).stdout


def assert_shown(command: str, shown: list[str], said: str) -> None:
    """Fail unless the command printed each line that the page shows, in the page's order."""
    rest = iter([comparable(line) for line in said.splitlines()])
    for line in shown:
        assert comparable(line) in rest, f"$ {command}\nthe page shows: {line}\nand it said:\n{said}"


def comparable(line: str) -> str:
    """Return a line without what differs from run to run, and without the suite's size: all numbers but of failures."""
    return re.sub(r"\d+(\.\d+)?(?!\d| failed)", "N", line.strip("=_ "))
