"""A shipped adapter is a page: its statements are counted by the budget's own rule."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from tests.statements import statements

EXAMPLES = Path(__file__).resolve().parents[2] / "generated_examples"
SHIPPED = ("aws_batch", "slurm")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_adapter_has_at_most_sixty_statements(name: str) -> None:
    assert statements(EXAMPLES / name) <= 60


@pytest.mark.parametrize("name", SHIPPED)
def test_its_checks_have_at_most_forty(name: str) -> None:
    (check,) = (EXAMPLES / name).rglob("check.py")
    tree = ast.parse(check.read_text(encoding="utf-8"))
    assert sum(isinstance(node, ast.stmt) for node in ast.walk(tree)) <= 40
