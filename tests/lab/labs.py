"""The real systems that tests run on, started beside pytest: `tests/lab/NAME-up`.

A test that needs one asks here for its environment, and sets nothing for others:

    env = labs.slurm()
    subprocess.run(("sbatch", "--wrap", "true"), env=env, check=True)

Where the lab is not up, that test is skipped with the command that starts it. With CI=true it fails: what is
not tested in CI is not tested anywhere.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
from tests.lab.listed import LabNotUp

from batchport.testing.aws import AwsSimulator

__all__ = ["aws", "engine", "fault", "own_aws", "own_slurm", "slurm"]

HERE = Path(__file__).parent
NOT_UP = 3
"""What `NAME-up --env` exits with when the lab is not up, or not as asked."""


def slurm(*, accounting: bool = True) -> dict[str, str]:
    """Return the environment of a process that uses the standing Slurm cluster, with accounting or without.

    All tests share the two. So a test may do with its own jobs what it likes, and leaves daemons, nodes and
    partitions alone, for which there is `own_slurm`.
    """
    __tracebackhide__ = True
    asked = {"SLURM_UP_ACCT": str(int(accounting))}
    return _standing("Slurm", "slurm-up", asked, ("SLURM_UP_DIR", "SLURM_UP_PORT"), root=True)


def engine() -> dict[str, str]:
    """Return the environment of a process that uses the standing container engine.

    All tests share it and its images: what a test builds it tags with a name of its own, and removes.
    """
    __tracebackhide__ = True
    return _standing("engine", "engine-up", {}, ("ENGINE_UP_DIR",), root=True)


def aws(*, executor: str = "process") -> dict[str, str]:
    """Return the environment of a process that uses the standing simulated AWS; executor: process or docker.

    All tests share the two: AWS_UP_QUEUE, AWS_UP_DEFINITION and AWS_UP_BUCKET name what is there. So a test may do
    with its own jobs, definitions and objects what it likes; for queues and hosts there is `own_aws`.
    """
    __tracebackhide__ = True
    if executor == "docker":
        engine()  # what is missing first is named first
    asked = {"AWS_UP_EXECUTOR": executor}
    return _standing("AWS", "aws-up", asked, ("AWS_UP_DIR", "AWS_UP_PORT", "ENGINE_UP_DIR"))


@contextmanager
def own_aws(*, executor: str = "process", **settings: Any) -> Iterator[AwsSimulator]:
    """Run a simulated AWS that the tests may break, and yield it; its jobs end with it.

    It takes two seconds: share one between the tests of a module. `settings` are the simulator's, as in max_running=1.
    Containers run on the standing engine, without which the tests are skipped.
    """
    __tracebackhide__ = True
    host = {"DOCKER_HOST": engine()["DOCKER_HOST"]} if executor == "docker" else {}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in host.items():
            patch.setenv(name, value)
        simulator = AwsSimulator(executor=executor, **settings)
    with simulator:
        yield simulator


@contextmanager
def own_slurm(*, accounting: bool = True, **settings: str) -> Iterator[dict[str, str]]:
    """Run a cluster whose daemons the tests may break, with `fault`, and yield its environment; remove it then.

    It takes some seconds: share one between the tests of a module. `settings` are those of `slurm-up`, as in
    SLURM_UP_MIN_JOB_AGE="2". The tests are skipped where the standing cluster is not up: it brought the packages.
    """
    __tracebackhide__ = True
    standing = slurm(accounting=accounting)
    if not _can_be_root():
        _missing("this starts a Slurm cluster of its own, which takes root: run it as root, or where sudo asks nothing")
    # Each of pytest-xdist's workers has one place, where it finds and removes what a killed run left.
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    own = settings | {
        "SLURM_UP_ACCT": standing["SLURM_UP_ACCT"],
        "SLURM_UP_DIR": f"{standing['SLURM_UP_DIR']}-own{worker}",
        "SLURM_UP_PORT": str(int(standing["SLURM_UP_PORT"]) + 40 * (worker + 1)),
    }
    _run("slurm-down", "--wipe", settings=own, root=True).check_returncode()
    try:
        up = _run("slurm-up", settings=own, root=True)
        if up.returncode != 0:
            pytest.fail(f"the test's own Slurm cluster did not start:\n{up.stderr}", pytrace=False)
        yield _environment(up.stdout)
    finally:
        _run("slurm-down", "--wipe", settings=own, root=True).check_returncode()


def fault(env: Mapping[str, str], what: str, daemon: str) -> None:
    """Break or mend a daemon of the cluster that `env` is of: see `slurm-fault`."""
    which = {name: env[name] for name in ("SLURM_UP_DIR", "SLURM_UP_ACCT")}
    done = _run("slurm-fault", what, daemon, settings=which, root=True)
    assert done.returncode == 0, done.stderr


def _standing(
    lab: str, script: str, asked: Mapping[str, str], told: Sequence[str], *, root: bool = False
) -> dict[str, str]:
    """Return what `NAME-up --env` prints for these settings; those of `told` that are in the environment hold too."""
    __tracebackhide__ = True
    done = _run(script, "--env", settings=asked)
    if done.returncode == NOT_UP:
        settings = {name: os.environ[name] for name in told if name in os.environ} | dict(asked)
        words = [*(_as_root() if root else ()), *(f"{name}={value}" for name, value in settings.items())]
        command = shlex.join([*words, os.path.relpath(HERE / script)])
        _missing(f"this needs the {lab} lab ({done.stderr.strip()}); start it with: {command}")
    done.check_returncode()
    return _environment(done.stdout)


def _missing(text: str) -> NoReturn:
    __tracebackhide__ = True
    if os.environ.get("CI") == "true":
        pytest.fail(text, pytrace=False)
    raise LabNotUp(text)


def _can_be_root() -> bool:
    if os.geteuid() == 0:
        return True
    return shutil.which("sudo") is not None and subprocess.run((*_as_root(), "true"), check=False).returncode == 0


def _as_root() -> tuple[str, ...]:
    return () if os.geteuid() == 0 else ("sudo", "-n")


def _run(
    script: str, *arguments: str, settings: Mapping[str, str], root: bool = False
) -> subprocess.CompletedProcess[str]:
    argv = ("env", *(f"{name}={value}" for name, value in settings.items()), str(HERE / script), *arguments)
    argv = (*_as_root(), *argv) if root else argv
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def _environment(exports: str) -> dict[str, str]:
    lines = (line.removeprefix("export ").partition("=") for line in exports.splitlines())
    return dict(os.environ) | {name: value for name, _, value in lines}
