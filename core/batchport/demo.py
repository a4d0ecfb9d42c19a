"""`batchport demo`: the whole idea, for real, in a temporary folder.

Called by the command line. It renders the blank template, runs its conformance suite, fills in the three
methods with those of LocalAdapter, runs the suite again, and then runs real work through the new adapter.
Needs the `demo` extra.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import copier
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table

from batchport.backends import local
from batchport.errors import BatchportError, UsageError
from batchport.hosts.executor import BatchExecutor
from batchport.scaffolding import template_folder

__all__ = ["run_demo"]

_PACKAGE = "my_backend"
_FILES_PER_JOB = 60
_METHODS = ("submit_job", "poll_jobs", "cancel_job")


def _is_helper(name: str, each: object) -> bool:
    return re.match(r"_[a-z]", name) is not None and inspect.isfunction(each)


_HELPERS = ("open", "element_id", *(name for name, each in vars(local.LocalAdapter).items() if _is_helper(name, each)))
"""What LocalAdapter's three methods call of their own class."""
_AT_HOME = [name for name in vars(local) if re.match(r"_?[A-Za-z]", name) and name != "annotations"]
"""What those take from their own module."""


def run_demo(*, keep: bool) -> None:
    """Run the demo and print what happens; with `keep`, leave the folder behind and say where it is.

    Raises UsageError if something that it needs is not installed, and BatchportError if the suite or the
    work does not come out as it must.
    """
    for module in ("pytest", "pytest_timeout"):
        if find_spec(module) is None:
            raise UsageError(f"the demo needs {module}; install it with: pip install 'batchport[demo]'")
    console, began = Console(highlight=False), time.monotonic()
    with _folder(keep=keep) as folder:
        backend = folder / "backend"
        _say(console, 1, "Scaffold a backend", f"copier copy {template_folder()} backend --defaults")
        _render(backend)
        for path in sorted(path.relative_to(folder) for path in backend.rglob("*") if path.is_file()):
            console.print(f"    {path}")

        _say(console, 2, "Run its conformance suite: it fails, and says what to write", "pytest")
        _suite(console, backend, passes=False)

        _say(console, 3, "Fill in the three methods, here with LocalAdapter's own", f"src/{_PACKAGE}/adapter.py")
        _fill_in(console, backend / "src" / _PACKAGE)

        _say(console, 4, "Run the suite again: it passes, and names what it did not run", "pytest")
        _suite(console, backend, passes=True)

        _say(console, 5, "Run real work through it", "tokenize every module of Python's own standard library")
        _work(console, backend / "src", folder)
        if keep:
            console.print(f"\nThe new backend is in {backend}")
    console.print(f"\nAll of it took {time.monotonic() - began:.0f} s.", style="bold")


@contextmanager
def _folder(*, keep: bool) -> Iterator[Path]:
    if keep:
        yield Path(tempfile.mkdtemp(prefix="batchport-demo-"))
        return
    with tempfile.TemporaryDirectory(prefix="batchport-demo-") as folder:
        yield Path(folder)


def _say(console: Console, number: int, what: str, how: str) -> None:
    console.print(f"\n[bold cyan]{number}. {what}[/]\n   [dim]$ {how}[/]")


def _render(target: Path) -> None:
    with warnings.catch_warnings():
        # Of a checkout with changes: those are just what its owner wants to see rendered.
        warnings.simplefilter("ignore", copier.errors.DirtyLocalWarning)
        # HEAD: a checkout would otherwise be rendered as of its newest tag.
        copier.run_copy(
            str(template_folder()), target, data={"package_name": _PACKAGE}, defaults=True, quiet=True, vcs_ref="HEAD"
        )


def _suite(console: Console, backend: Path, *, passes: bool) -> None:
    """Run the scaffold's tests in this Python, show what they print, and insist on how they end."""
    command = [sys.executable, "-m", "pytest", "--no-header", "-q", "-p", "no:cacheprovider"]
    if find_spec("pytest_asyncio"):
        command += ["-p", "no:asyncio"]  # the scaffold does not configure it, and need not
    if console.is_terminal:
        command += ["--color=yes"]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(command, cwd=backend, stdout=subprocess.PIPE, text=True, env=environment) as tests:
        assert tests.stdout is not None
        try:
            for line in tests.stdout:
                sys.stdout.write(f"    {line}")
                sys.stdout.flush()
        except KeyboardInterrupt:
            tests.terminate()  # a terminal's Ctrl-C has reached it too; what ended only us has not
            tests.wait()
            raise
    if (tests.returncode == 0) is not passes:
        ended = "passed" if tests.returncode == 0 else f"ended with {tests.returncode}"
        raise BatchportError(f"the suite {ended}, where it should {'pass' if passes else 'fail'}: see above")


def _fill_in(console: Console, package: Path) -> None:
    """Replace the skeleton's methods by LocalAdapter's, and show what an author would have typed."""
    adapter, sources = package / "adapter.py", {method: _source(method) for method in _METHODS}
    sources["__init__"] = "\n".join(map(_source, ("__init__", *_HELPERS)))
    lines = adapter.read_text(encoding="utf-8").splitlines()
    for method in (*reversed(_METHODS), "__init__"):  # from the last, so that line numbers stay right
        start, end = _span(lines, method)
        lines[start:end] = sources[method].splitlines()
    text = "\n".join([*lines, ""])
    # They are at home in LocalAdapter's module, and need what it has at hand.
    at_home = f"from {local.__name__} import {', '.join(_AT_HOME)}"
    own = "from .options import Options\n"
    adapter.write_text(text.replace(own, f"{own}\n{at_home}\n"), encoding="utf-8")
    (package / "options.py").write_text(f"from {local.__name__} import Options as Options\n", encoding="utf-8")
    console.print(
        Syntax("\n".join(sources[method] for method in _METHODS).rstrip(), "python", background_color="default")
    )


def _source(method: str) -> str:
    return inspect.getsource(getattr(local.LocalAdapter, method))


def _span(lines: list[str], method: str) -> tuple[int, int]:
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.FunctionDef) and node.name == method:
            assert node.end_lineno is not None
            return node.lineno - 1, node.end_lineno
    raise BatchportError(f"the template's adapter has no {method}")


def _load(source: Path) -> ModuleType:
    """Import the scaffold's adapter as its users would, without installing it."""
    sys.path.insert(0, str(source))
    try:
        return importlib.import_module(f"{_PACKAGE}.adapter")
    finally:
        sys.path.remove(str(source))


def _work(console: Console, source: Path, folder: Path) -> None:
    def count_tokens(path: str) -> int:
        # A function made here travels by value: the job need not import the demo for each file.
        import tokenize

        with tokenize.open(path) as file:
            return sum(1 for _ in tokenize.generate_tokens(file.readline))

    adapter = _load(source).Adapter(local.Options(folder=str(folder / "jobs")))
    library = Path(sysconfig.get_path("stdlib"))
    files = [str(path) for path in library.rglob("*.py") if "site-packages" not in path.parts]
    began, tokens, raised = time.monotonic(), 0, Counter[str]()
    with BatchExecutor(adapter, folder / "store", tasks_per_job=_FILES_PER_JOB, progress=True) as executor:
        for future in [executor.submit(count_tokens, path) for path in files]:
            error = future.exception()
            if error is None:
                tokens += future.result()
            else:
                raised[type(error).__name__] += 1
        seconds, counts = time.monotonic() - began, executor.counts
    table = Table("files", "tokens", "seconds", "jobs", "calls to the backend", "calls to the store")
    calls = (counts.backend_calls.total(), counts.store_calls.total())
    table.add_row(*(f"{number:,.0f}" for number in (len(files), tokens, seconds, counts.jobs, *calls)))
    console.print(table)
    if raised:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(raised.items()))
        console.print(
            f"{raised.total()} of the files are not Python that can be read, most of them tests of just that. "
            f"Each raised its own exception in the job, and here again: {kinds}."
        )
