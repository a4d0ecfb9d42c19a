"""A reader of the tutorial, with the real Task Spooler and a queue of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import copier
import pytest
from tests.tutorial import page

ROOT = Path(__file__).resolve().parents[2]
MISSING = (
    "the tutorial is tested on the real Task Spooler, and there is no command tsp here; "
    "install it with: sudo apt-get install -y task-spooler"
)


_NOT_THE_READERS = {"CI", "PYTEST_ADDOPTS", "VIRTUAL_ENV"}
"""With CI set, pytest prints more than the page shows."""


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Mapping[str, str]]:
    """Return an environment with a queue whose server ends with the test, and with uv and copier on PATH."""
    if shutil.which("tsp") is None:
        # What is not tested in CI is not tested anywhere.
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(MISSING)
    (tmp_path / "output").mkdir()
    ours = {
        **{name: value for name, value in os.environ.items() if name not in _NOT_THE_READERS},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "UV_PYTHON": sys.executable,
        "TS_SOCKET": str(tmp_path / "queue"),
        "TMPDIR": str(tmp_path / "output"),
    }
    yield ours
    subprocess.run(("tsp", "-K"), env=ours, check=False, capture_output=True)


@pytest.fixture(scope="session")
def scaffold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Render a scaffold from the template as it stands on disk, and write into it all that the page says."""
    template, made = tmp_path_factory.mktemp("template"), tmp_path_factory.mktemp("reader") / "backend"
    shutil.copy(ROOT / "copier.yml", template)
    shutil.copytree(ROOT / "template", template / "template")
    answers = {"package_name": "tsp_backend", "backend_name": "tsp", "batchport_source": str(ROOT)}
    copier.run_copy(str(template), made, data=answers, defaults=True, quiet=True)
    for block in page.blocks():
        if block.file.startswith(("src/", "tests/")) and block.remark != page.WRONG:
            page.write(block, made)
    return made
