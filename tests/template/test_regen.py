"""generated_examples/ is what the template renders, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def own(make_clone: Callable[[Path], Path], tmp_path: Path) -> Path:
    """Make a clone that the test may change."""
    return make_clone(tmp_path / "own")


def regen(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "tests/template/regen.py", *arguments)
    return subprocess.run(command, cwd=root, check=False, capture_output=True, text=True)


def test_the_examples_are_what_the_template_renders() -> None:
    done = regen(ROOT, "--check")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_changed_a_missing_and_an_extra_file_are_each_named_and_then_put_right(own: Path) -> None:
    blank = own / "generated_examples/blank"
    (blank / "README.md").write_text("by hand\n", encoding="utf-8")
    (blank / "src/my_backend/options.py").unlink()
    (blank / "extra.py").write_text("", encoding="utf-8")
    done = regen(own, "--check")
    assert done.returncode == 1
    assert done.stderr == (
        "not as the template renders them:\n"
        "generated_examples/blank/README.md\n"
        "generated_examples/blank/extra.py\n"
        "generated_examples/blank/src/my_backend/options.py\n"
        "-> nox -s regen writes them anew\n"
    )
    assert regen(own).returncode == 0
    assert regen(own, "--check").returncode == 0
    assert not (blank / "extra.py").exists()


def test_a_change_of_the_template_that_is_not_committed_counts(own: Path) -> None:
    with (own / "template/README.md.jinja").open("a", encoding="utf-8") as file:
        file.write("One more line.\n")
    assert "generated_examples/blank/README.md" in regen(own, "--check").stderr


def test_no_example_names_a_machine_or_a_moment() -> None:
    for answers in (ROOT / "generated_examples").glob("*/.copier-answers.yml"):
        assert "\n_" not in answers.read_text(encoding="utf-8")
    listing = ("git", "grep", "--untracked", "--fixed-strings", "-e", str(ROOT), "--", "generated_examples")
    assert subprocess.run(listing, cwd=ROOT, check=False, capture_output=True, text=True).stdout == ""
