"""The way of an author, for real: from a clone to the first test run, by the commands that the documentation gives.

Needs the package registry, which is asked by uv.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from batchport.scaffolding import template_folder

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def environment() -> Mapping[str, str]:
    """Return an environment with uv and copier on PATH, and this Python for uv's virtual environments."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "UV_PYTHON": sys.executable}


@pytest.fixture(scope="module")
def scaffold(clone: Path, environment: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Render a backend as the README says, in a folder that has nothing else."""
    folder = tmp_path_factory.mktemp("author")
    command = ("copier", "copy", "--vcs-ref", "HEAD", str(clone), "backend", "--defaults")
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return folder / "backend"


def test_a_fresh_scaffold_fails_only_with_what_is_to_be_implemented(
    scaffold: Path, environment: Mapping[str, str]
) -> None:
    done = subprocess.run(
        ("uv", "run", "pytest"), cwd=scaffold, env=environment, check=False, capture_output=True, text=True
    )
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert re.search(r"\b3 failed\b", said), said
    assert "error" not in said.splitlines()[-1], said
    for method in ("submit_job", "poll_jobs", "cancel_job"):
        assert f"implement {method}" in said
        assert f"writing-a-backend.md#{method}" in said
    assert "src/my_backend/adapter.py" in said


def test_the_commands_of_the_dockerfile_make_what_it_copies(scaffold: Path, environment: Mapping[str, str]) -> None:
    commands = re.findall(r"^#   (uv.*)$", (scaffold / "runner/Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        subprocess.run(command, shell=True, cwd=scaffold, env=environment, check=True, capture_output=True)
    requirements = (scaffold / "runner/requirements.txt").read_text(encoding="utf-8")
    assert re.search(r"^cloudpickle==", requirements, re.MULTILINE)
    assert re.search(r"^obstore==", requirements, re.MULTILINE)
    assert "batchport" not in re.sub(r"#.*", "", requirements)
    (wheel,) = (scaffold / "runner/wheels").iterdir()
    assert wheel.name.startswith("batchport-")

    # No container engine is needed here: what the image's RUN lines install can be installed all the same.
    install = ("uv", "pip", "install", "--python", "image")
    for command in (
        ("uv", "venv", "image"),
        (*install, "--requirement", "runner/requirements.txt"),
        (*install, "--no-deps", str(wheel)),
        ("image/bin/python", "-c", "import batchport.runner, cloudpickle, obstore"),
    ):
        subprocess.run(command, cwd=scaffold, env=environment, check=True, capture_output=True)


def test_the_wheel_ships_the_template(clone: Path, environment: Mapping[str, str], tmp_path: Path) -> None:
    command = ("uv", "build", "--wheel", "--out-dir", str(tmp_path), str(clone))
    subprocess.run(command, env=environment, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    shipped = tmp_path / "installed/batchport/scaffold"
    for path in (clone / "copier.yml", *(clone / "template").rglob("*")):
        assert (shipped / path.relative_to(clone)).exists(), f"the wheel lacks {path}"
    found = subprocess.run(
        (sys.executable, "-c", "from batchport.scaffolding import template_folder; print(template_folder())"),
        env={**environment, "PYTHONPATH": str(tmp_path / "installed")},
        check=True,
        capture_output=True,
        text=True,
    )
    assert found.stdout.strip() == str(shipped)


def test_the_template_of_a_checkout_is_at_its_root() -> None:
    assert template_folder() == ROOT
