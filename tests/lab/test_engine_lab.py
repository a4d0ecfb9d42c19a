"""The engine lab is what other tests take it for: containers run, are limited and killed, and images are built."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import pytest
from tests.lab import labs

HERE = Path(__file__).parent
IMAGE = "python:3.11-slim"
DOCKERFILE = """
FROM python:3.11-slim
RUN useradd --create-home --uid 1000 job
USER job
WORKDIR /home/job
COPY words .
"""


def docker(*argv: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    asked = ("/usr/bin/docker", *argv)
    return subprocess.run(asked, env=env or labs.engine(), capture_output=True, text=True, check=False)


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return docker("run", "--rm", "--network=host", *argv)


def test_a_container_runs_python_3_11_and_its_exit_code_comes_back() -> None:
    done = run(IMAGE, "python", "-c", "import sys; print(sys.version_info[:2]); sys.exit(7)")
    assert (done.stdout, done.returncode) == ("(3, 11)\n", 7)


def test_a_container_over_its_memory_is_killed_and_says_so() -> None:
    env, name = labs.engine(), f"test-{uuid4().hex}"
    limits = ("--memory=50m", "--memory-swap=50m", "--network=host")
    try:
        docker("run", "--name", name, *limits, IMAGE, "python", "-c", "x = bytearray(300 << 20)", env=env)
        said = docker("inspect", "--format", "{{.State.OOMKilled}} {{.State.ExitCode}}", name, env=env).stdout
    finally:
        docker("rm", "--force", name, env=env)
    assert said == "true 137\n"


def test_a_dockerfile_from_the_base_image_builds_and_runs_as_its_user(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(DOCKERFILE, encoding="utf-8")
    (tmp_path / "words").write_text("hello\n", encoding="utf-8")
    tag = f"test-{uuid4().hex}"
    built = docker("build", "--network=host", "--tag", tag, str(tmp_path))
    assert built.returncode == 0, built.stderr
    try:
        assert run(tag, "sh", "-c", "id -u; cat words").stdout == "1000\nhello\n"
    finally:
        docker("rmi", "--force", tag)


def test_pip_in_a_container_finds_the_index_that_pip_finds_here() -> None:
    done = run(IMAGE, "pip", "download", "--quiet", "--no-deps", "--dest", "/tmp", "iniconfig")
    assert done.returncode == 0, done.stderr


NEEDS_IT = "from tests.lab import labs\ndef test_it() -> None:\n    labs.{}\n"


@pytest.mark.parametrize(("ci", "outcome"), [("", "1 skipped"), ("true", "1 failed")])
@pytest.mark.parametrize(
    ("call", "nowhere", "command"),
    [
        ("engine()", "no container engine was ever started in", "tests/lab/engine-up"),
        ("aws()", "no simulated AWS was ever started in", "AWS_UP_EXECUTOR=process tests/lab/aws-up"),
        ("aws(executor='docker')", "no container engine was ever started in", "tests/lab/engine-up"),
        ("own_aws(executor='docker').__enter__()", "no container engine was ever started in", "tests/lab/engine-up"),
    ],
)
def test_where_no_lab_is_up_its_test_names_the_command_and_fails_in_ci(  # noqa: PLR0913, PLR0917 - three are a row
    call: str, nowhere: str, command: str, ci: str, outcome: str, tmp_path: Path
) -> None:
    (tmp_path / "test_needs_it.py").write_text(NEEDS_IT.format(call), encoding="utf-8")
    argv = (sys.executable, "-m", "pytest", "-c", os.devnull, f"--rootdir={tmp_path}", "-ra", str(tmp_path))
    folders = {name: str(tmp_path / "no") for name in ("AWS_UP_DIR", "ENGINE_UP_DIR")}
    plain = {"CI": ci, "COLUMNS": "600", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        argv, env={**os.environ, **folders, **plain}, cwd=HERE.parents[1], capture_output=True, text=True, check=False
    )
    assert outcome in done.stdout
    assert f"{nowhere} {tmp_path}/no" in done.stdout
    assert command in done.stdout
