"""The command line, as a user calls it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = "from batchport.cli import main\nsys.argv[0] = 'batchport'\nmain()"


def _batchport(*words: str, before: str = "") -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", f"import sys\n{before}\n{PROGRAM}", *words]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def test_the_doctor_looks_at_the_local_backend(tmp_path: Path) -> None:
    run = _batchport("doctor", "local", "--option", f"folder={tmp_path}", "--option", "slots=3")
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert lines[0] == f"ok    jobs' folders in {tmp_path}"
    assert lines[1].startswith("ok    3 slots for ")


def test_the_doctor_does_not_know_a_backend_that_is_not_installed() -> None:
    run = _batchport("doctor", "lokal")
    assert run.returncode == 1
    assert run.stderr == (
        "batchport: no backend is called 'lokal'; did you mean 'local'? installed are: local. "
        "A backend is found once its package is installed in this Python\n"
    )


def test_an_option_that_is_no_pair_is_refused() -> None:
    run = _batchport("doctor", "local", "--option", "slots")
    assert (run.returncode, run.stderr) == (1, "batchport: --option 'slots': write it as NAME=VALUE\n")


def test_an_option_that_the_backend_lacks_is_refused_with_those_it_has() -> None:
    run = _batchport("doctor", "local", "--option", "queue=long")
    assert (run.returncode, run.stderr) == (
        1,
        "batchport: the backend 'local' has no option 'queue'; it has: folder, slots, queue_limit\n",
    )


def test_without_the_extra_the_command_line_says_what_to_install() -> None:
    run = _batchport("doctor", "local", before="sys.modules['typer'] = None")
    assert (run.returncode, run.stderr) == (
        1,
        "batchport: the command line needs typer and rich; install them with: pip install 'batchport[cli]'\n",
    )


def test_without_its_extra_the_demo_says_what_to_install() -> None:
    run = _batchport("demo", before="sys.modules['copier'] = None")
    assert (run.returncode, run.stderr) == (
        1,
        "batchport: the demo needs copier; install it with: pip install 'batchport[demo]'\n",
    )


def test_a_demo_that_is_told_to_end_leaves_nothing_and_says_nothing(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", f"import sys\n{PROGRAM}", "demo"]
    env = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as demo:
        assert demo.stdout
        assert any(line.startswith("2. Run its conformance suite") for line in demo.stdout)
        assert any(line.startswith("    ") for line in demo.stdout), "the suite prints nothing"
        demo.terminate()
        _, err = demo.communicate()
    assert (demo.returncode, err) == (143, "")
    assert list(tmp_path.glob("batchport-demo-*")) == []
