"""The project's chores by name: `uv run nox -s tests`. Called by people and by .ci/run.

Every session runs in the environment that `uv run` made, and none makes its own: there is one environment, it is
pinned once, and what passes under one session's tools is what the others see.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import nox

nox.needs_version = ">=2025.5"
nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "tests", "regen", "docs"]

OLDEST_SCALER = "2.8.0"
PINS = Path("constraints.txt")
PROJECT = Path("pyproject.toml")
PINNED = re.compile(r"^constraint-dependencies = \[\n.*?^\]\n", re.MULTILINE | re.DOTALL)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests; what follows -- goes to pytest too."""
    # Many tests mostly wait for processes, so two at a time pay off on two cores; more upset each other.
    session.run("pytest", "-n", "2", "--dist", "worksteal", *session.posargs)


@nox.session
def older_scaler(session: nox.Session) -> None:
    """Run the Scaler host's tests on the oldest opengris-scaler that it works with; the others have the newest."""
    folder = Path(session.create_tmp(), f"opengris-scaler-{OLDEST_SCALER}").resolve()
    # It needs what the newest needs, so the environment has all but itself. --no-config, or the pin would forbid it.
    install = ("uv", "pip", "install", "--quiet", "--no-config", "--no-deps", "--target", str(folder))
    session.run(*install, f"opengris-scaler=={OLDEST_SCALER}")
    first = {"PYTHONPATH": str(folder)}
    found = session.run("python", "-c", "import scaler; print(scaler.__version__)", env=first, silent=True)
    if str(found).strip() != OLDEST_SCALER:
        session.error(f"opengris-scaler {OLDEST_SCALER} was to be tested, and {found} would be")
    session.run(
        "pytest", "-n", "2", "--dist", "worksteal", *map(str, Path("tests/hosts").glob("test_scaler*.py")), env=first
    )


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, types, the direction of imports, and that the pins are the same in both of their places."""
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")
    session.run("lint-imports", "--no-cache", "--no-logo")
    listed = tomllib.loads(PROJECT.read_text("utf-8"))["tool"]["uv"]["constraint-dependencies"]
    if listed != PINS.read_text("utf-8").splitlines():
        session.error(f"{PINS} and constraint-dependencies in {PROJECT} differ; `uv run nox -s pins` renews both")


@nox.session
def regen(session: nox.Session) -> None:
    """Render generated_examples/ from the template; with -- --check, prove that nothing would change."""
    session.run("python", "tests/template/regen.py", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site into site/; a broken link is an error."""
    session.run("mkdocs", "build", "--strict", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Run one benchmark, `nox -s bench -- NAME`: a table and, last, one line of JSON; exits 1 on a missed budget."""
    known = sorted(path.stem for path in Path("benchmarks").glob("[!_]*.py"))
    there_are = f"the benchmarks are: {', '.join(known)}"
    if not session.posargs:
        session.skip(there_are)
    name, *arguments = session.posargs
    if name not in known:
        session.error(f"no benchmark is called {name!r}; {there_are}")
    session.run("python", f"benchmarks/{name}.py", *arguments)


@nox.session
def long(session: nox.Session) -> None:
    """Run what takes too long for every change, or, with -- NAME, one of it."""
    runs = {
        "mutants": (1, ("python", "-m", "tests.mutants.matrix")),
        "kills": (10, ("pytest", "-q", "-s", "tests/hosts/test_durable_kills.py")),
        "engine": (1, ("python", "benchmarks/engine.py")),
        "slurm": (1, ("python", "benchmarks/slurm.py")),
        "slurm_faults": (1, ("python", "benchmarks/slurm_faults.py")),
    }
    if unknown := [name for name in session.posargs if name not in runs]:
        session.error(f"nothing long is called {unknown[0]!r}; there are: {', '.join(runs)}")
    for name in session.posargs or runs:
        times, command = runs[name]
        for _ in range(times):
            session.run(*command)


@nox.session
def pins(session: nox.Session) -> None:
    """Pin the newest release of everything that the environment holds, in constraints.txt and pyproject.toml."""
    PROJECT.write_text(PINNED.sub("constraint-dependencies = [\n]\n", PROJECT.read_text("utf-8")), "utf-8")
    session.run("uv", "lock", "--upgrade")
    wanted = ("--all-groups", "--all-extras", "--no-emit-project", "--no-hashes", "--no-header", "--no-annotate")
    session.run("uv", "export", "--quiet", *wanted, "--output-file", str(PINS))
    listed = "".join(f'    "{pin}",\n' for pin in PINS.read_text("utf-8").splitlines())
    block = f"constraint-dependencies = [\n{listed}]\n"
    PROJECT.write_text(PINNED.sub(lambda _: block, PROJECT.read_text("utf-8")), "utf-8")
