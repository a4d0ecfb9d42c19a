"""The template as it stands in the working tree, committed or not, and ways to render it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import copier
import pytest
import yaml  # type: ignore[import-untyped]  # copier brings it, and its types would be one more package

ROOT = Path(__file__).resolve().parents[2]


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false")
    return subprocess.run(("git", *who, *arguments), cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="session", autouse=True)
def _plain_words() -> Iterator[None]:
    """Keep the colours, the options and the virtual environment of this run out of the commands that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CLICOLOR_FORCE", "FORCE_COLOR", "PYTEST_ADDOPTS", "UV_PROJECT_ENVIRONMENT", "VIRTUAL_ENV"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def commit() -> Callable[[Path], None]:
    """Commit everything in a folder, which becomes a git repository if it is none."""

    def committed(folder: Path) -> None:
        git(folder, "init", "--quiet")
        git(folder, "add", "--all")
        git(folder, "commit", "--quiet", "--message", "as it is")

    return committed


@pytest.fixture(scope="session")
def make_clone(commit: Callable[[Path], None]) -> Callable[[Path], Path]:
    """Clone this repository into a folder, with all that is in the working tree committed."""

    def made(folder: Path) -> Path:
        for name in git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes((ROOT / name).read_bytes())
        commit(folder)
        return folder

    return made


@pytest.fixture(scope="session")
def clone(make_clone: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One clone for all tests that only read it."""
    return make_clone(tmp_path_factory.mktemp("clone") / "batchport")


@pytest.fixture(scope="session")
def settings() -> dict[str, Any]:
    """Return what copier.yml says: settings, whose names begin with `_`, and questions."""
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "copier.yml").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="session")
def questions(settings: dict[str, Any]) -> set[str]:
    """Return the names of the questions that are asked; the others are computed."""
    return {name for name, each in settings.items() if name[0] != "_" and each.get("when") is not False}


@pytest.fixture
def render(clone: Path, questions: set[str], tmp_path: Path) -> Callable[..., Path]:
    """Render the template with the given answers and return the new project's folder."""

    def rendered(**answers: str) -> Path:
        # copier silently accepts the answer to a question that does not exist, and the test would test nothing
        assert answers.keys() <= questions
        copier.run_copy(str(clone), tmp_path / "made", data=answers, defaults=True, quiet=True, vcs_ref="HEAD")
        return tmp_path / "made"

    return rendered
