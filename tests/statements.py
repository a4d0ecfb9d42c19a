"""statements(): how long the Python of a scaffold is, by the budget's own rule. `python tests/statements.py FOLDER`.

Called by the tests of the budget, for the tutorial's adapter and the shipped ones: statements of all Python in a
scaffold but its tests, imports, the fields of Options, state tables and check.py. Docstrings are no statements here.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

__all__ = ["statements"]


def statements(scaffold: Path) -> int:
    """Return the number of statements in the package under `scaffold`/src that count."""
    files = [path for path in (scaffold / "src").rglob("*.py") if path.name != "check.py"]
    if not files:
        message = f"{scaffold} is no scaffold: there is no Python in its folder src"
        raise ValueError(message)
    return sum(_counted(ast.parse(path.read_text(encoding="utf-8"))) for path in files)


def _counted(tree: ast.Module) -> int:
    free = {id(each) for node in ast.walk(tree) for each in _free(node)}
    return sum(isinstance(node, ast.stmt) and id(node) not in free for node in ast.walk(tree))


def _free(node: ast.AST) -> list[ast.stmt]:
    """Return what does not count: an import itself, and among a body's statements docstrings, fields and tables."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [node]
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return []
    free: list[ast.stmt] = [each for each in node.body if _is_text(each)]
    if isinstance(node, ast.ClassDef) and node.name == "Options":
        free += [each for each in node.body if isinstance(each, ast.AnnAssign)]
    if isinstance(node, ast.Module):
        free += [each for each in node.body if isinstance(each, ast.Assign | ast.AnnAssign) and _is_table(each.value)]
    return free


def _is_text(statement: ast.stmt) -> bool:
    """Return whether this is a docstring, of the definition that it is in or of the name before it."""
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _is_table(value: ast.expr | None) -> bool:
    """Return whether this is a dict with the contract's states or reasons as its values, and with nothing else."""
    return isinstance(value, ast.Dict) and all(
        isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name) and each.value.id in {"JobState", "Reason"}
        for each in value.values
    )


if __name__ == "__main__":
    for each in sys.argv[1:]:
        print(f"{statements(Path(each)):4}  {each}")
