"""What the template asks, and what it makes of the answers."""

from __future__ import annotations

import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import copier
import pytest

Render = Callable[..., Path]

NAME = (
    "cannot be the package's name: it must be a Python identifier of at most 40 lower-case letters, digits and "
    "underscores, begin with a letter, and be neither a keyword nor batchport; for example my_backend"
)


def test_at_most_six_questions_are_asked(questions: set[str]) -> None:
    assert questions == {"package_name", "backend_name", "starter", "batchport_source"}
    assert len(questions) <= 6


def test_nothing_in_the_template_needs_trust(settings: dict[str, Any]) -> None:
    assert not settings.keys() & {"_tasks", "_migrations", "_jinja_extensions"}


@pytest.mark.parametrize("name", ["my-backend", "class", "1abc", "", "Upper", "batchport", "_mine", "a" * 41])
def test_a_package_name_that_is_no_identifier_is_refused_in_words(render: Render, name: str) -> None:
    with pytest.raises(ValueError, match="package_name") as caught:
        render(package_name=name)
    assert str(caught.value) == f"Validation error for question 'package_name': \"{name}\" {NAME}"


def test_the_name_of_the_backend_inside_batchport_is_refused(render: Render) -> None:
    with pytest.raises(ValueError, match="backend_name") as caught:
        render(package_name="local")
    assert str(caught.value) == (
        "Validation error for question 'backend_name': \"local\" cannot be the backend's name: it must be at most 40 "
        "lower-case letters, digits and dashes, begin with a letter, and not be local, which is batchport's own; for "
        "example my-backend"
    )


def test_a_source_that_is_none_is_refused(render: Render) -> None:
    with pytest.raises(ValueError, match="batchport_source") as caught:
        render(batchport_source="latest")
    assert str(caught.value) == (
        "Validation error for question 'batchport_source': \"latest\" is no source of batchport: "
        "give a folder with a / in it, a git URL, a release such as 0.1.0, or nothing"
    )


def test_the_backend_is_named_after_the_package(render: Render) -> None:
    points = project(render(package_name="our_queue"))["project"]["entry-points"]["batchport.backends"]
    assert points == {"our-queue": "our_queue.adapter:Adapter"}


@pytest.mark.parametrize(
    ("answer", "dependency", "source"),
    [
        ("../..", "batchport", {"path": "../..", "editable": True}),
        ("https://host/org/batchport", "batchport", {"git": "https://host/org/batchport"}),
        ("git@host:org/batchport.git", "batchport", {"git": "ssh://git@host/org/batchport.git"}),
        ("gh:org/batchport", "batchport", {"git": "https://github.com/org/batchport"}),
        ("0.1.0", "batchport==0.1.0", None),
    ],
)
def test_batchport_comes_from_the_source_that_is_given(
    render: Render, answer: str, dependency: str, source: object
) -> None:
    made = project(render(batchport_source=answer))
    assert made["project"]["dependencies"] == [dependency]
    assert made["tool"].get("uv", {}).get("sources", {}).get("batchport") == source


def test_batchport_comes_from_the_clone_that_the_template_is_from(render: Render, clone: Path) -> None:
    assert project(render())["tool"]["uv"]["sources"] == {"batchport": {"path": str(clone), "editable": True}}


def test_batchport_comes_from_the_commit_of_a_url_that_the_template_is_from(clone: Path, tmp_path: Path) -> None:
    head = subprocess.run(("git", "rev-parse", "HEAD"), cwd=clone, check=True, capture_output=True, text=True)
    copier.run_copy(f"git+{clone.as_uri()}", tmp_path / "made", defaults=True, quiet=True, vcs_ref="HEAD")
    source = project(tmp_path / "made")["tool"]["uv"]["sources"]["batchport"]
    assert source == {"git": clone.as_uri(), "rev": head.stdout.strip()}


def project(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
