"""What comes out of the template: files that are clean as they come, and that are renewed without loss."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

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


@pytest.mark.parametrize("starter", ["aws_batch", "slurm"])
def test_a_shipped_starter_is_clean_under_any_name(render: Render, starter: str) -> None:
    made = render(package_name="our_own_name_for_it", starter=starter)
    assert {name.format(package="our_own_name_for_it") for name in FILES} < {
        str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()
    }
    assert said_by(made, "ruff", "check", "--no-cache") == "All checks passed!\n"
    assert "would be reformatted" not in said_by(made, "ruff", "format", "--check", "--no-cache")
    assert said_by(made, "mypy").startswith("Success: no issues found in ")


def test_each_method_of_the_skeleton_says_that_it_is_to_be_implemented(
    render: Render, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(render(package_name="skeleton_to_fill") / "src")
    adapter = importlib.import_module("skeleton_to_fill.adapter").Adapter(SimpleNamespace())
    for method in ("submit_job", "poll_jobs", "cancel_job"):
        with pytest.raises(NotImplementedError) as caught:
            getattr(adapter, method)(None)
        assert str(caught.value) == f"implement {method}"


# From below by the whole path: copier 9.19 does not take `..` once the template's adapter has changed.
@pytest.mark.parametrize(("called_in", "project"), [("made", "."), (".", "made"), ("made/src", "{made}")])
def test_an_update_equals_a_fresh_copy_and_keeps_the_adapter(
    make_clone: Callable[[Path], Path], commit: Callable[[Path], None], tmp_path: Path, called_in: str, project: str
) -> None:
    source, made = make_clone(tmp_path / "source"), tmp_path / "made"

    def copier_says(*arguments: str, folder: Path) -> None:
        command = (sys.executable, "-m", "copier", *arguments, "--quiet", "--defaults", "--vcs-ref", "HEAD")
        subprocess.run(command, cwd=folder, check=True, capture_output=True)

    # a relative path, as people type it: an update runs in another folder and has to find it all the same
    copier_says("copy", "./source", "made", folder=tmp_path)
    (adapter,) = made.glob("src/*/adapter.py")
    adapter.write_text("# the author's work\n", encoding="utf-8")
    commit(made)
    for path in (source / "template").rglob("*"):
        if path.name in {"adapter.py", ".gitignore", "README.md.jinja", "test_conformance.py.jinja"}:
            path.write_text("# new in the template\n", encoding="utf-8")
    (source / "template/runner/Dockerfile.jinja").rename(source / "template/runner/Containerfile.jinja")
    (source / "template/src/{{ package_name }}/added.py").write_text('"""Added."""\n', encoding="utf-8")
    commit(source)

    copier_says("update", project.format(made=made), folder=tmp_path / called_in)

    copier_says("copy", "./source", "fresh", folder=tmp_path)
    updated, fresh = files_of(made), files_of(tmp_path / "fresh")
    assert updated.pop("src/my_backend/adapter.py") == b"# the author's work\n"
    assert fresh.pop("src/my_backend/adapter.py") == b"# new in the template\n"
    assert updated == fresh


def files_of(project: Path) -> dict[str, bytes]:
    paths = {str(path.relative_to(project)): path for path in project.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in paths.items() if not name.startswith(".git/")}


def said_by(folder: Path, tool: str, *arguments: str) -> str:
    command = (sys.executable, "-m", tool, *arguments)
    return subprocess.run(command, cwd=folder, check=False, stdout=subprocess.PIPE, text=True).stdout
