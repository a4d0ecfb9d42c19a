"""What comes out of the template: files that are clean as they come, and that are renewed without loss."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import copier
import pytest

Render = Callable[..., Path]

FILES = {
    ".copier-answers.yml",
    ".gitignore",
    "README.md",
    "pyproject.toml",
    "runner/Dockerfile",
    "src/{package}/__init__.py",
    "src/{package}/adapter.py",
    "src/{package}/options.py",
    "src/{package}/py.typed",
    "tests/test_conformance.py",
    "tests/test_entry_point.py",
}


@pytest.mark.parametrize("package", ["my_backend", "a", "zz9", "a" * 40])
def test_a_render_has_every_file_and_is_clean_under_ruff(render: Render, package: str) -> None:
    made = render(package_name=package)
    assert {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()} == {
        name.format(package=package) for name in FILES
    }
    assert said_by(made, "ruff", "check", "--no-cache") == "All checks passed!\n"
    assert "would be reformatted" not in said_by(made, "ruff", "format", "--check", "--no-cache")


def test_a_render_is_clean_under_strict_mypy(render: Render) -> None:
    assert said_by(render(package_name="our_queue"), "mypy") == "Success: no issues found in 5 source files\n"


def test_each_method_of_the_skeleton_says_that_it_is_to_be_implemented(
    render: Render, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(render(package_name="skeleton_to_fill") / "src")
    adapter = importlib.import_module("skeleton_to_fill.adapter").Adapter(SimpleNamespace())
    for method in ("submit_job", "poll_jobs", "cancel_job"):
        with pytest.raises(NotImplementedError) as caught:
            getattr(adapter, method)(None)
        assert str(caught.value) == f"implement {method}"


def test_an_update_keeps_the_adapter_and_renews_the_rest(
    make_clone: Callable[[Path], Path], commit: Callable[[Path], None], tmp_path: Path
) -> None:
    source, made = make_clone(tmp_path / "source"), tmp_path / "made"
    # a relative path, as people type it: an update runs in another folder and has to find it all the same
    subprocess.run(
        (sys.executable, "-m", "copier", "copy", "--quiet", "--defaults", "--vcs-ref", "HEAD", "./source", "made"),
        cwd=tmp_path,
        check=True,
    )
    (adapter,) = made.glob("src/*/adapter.py")
    adapter.write_text("# the author's work\n", encoding="utf-8")
    commit(made)
    for path in (source / "template").rglob("*"):
        if path.name in {"adapter.py", ".gitignore"}:
            path.write_text("# new in the template\n", encoding="utf-8")
    commit(source)

    copier.run_update(made, defaults=True, overwrite=True, quiet=True, vcs_ref="HEAD")

    assert adapter.read_text(encoding="utf-8") == "# the author's work\n"
    assert (made / ".gitignore").read_text(encoding="utf-8") == "# new in the template\n"


def said_by(folder: Path, tool: str, *arguments: str) -> str:
    command = (sys.executable, "-m", tool, *arguments)
    return subprocess.run(command, cwd=folder, check=False, stdout=subprocess.PIPE, text=True).stdout
