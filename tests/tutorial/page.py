"""The tutorial as its reader takes it: blocks in the page's order, each put where the page says that it goes.

Called by the tests beside it. The rules are those that the page states: a title names the file; what a block defines
is replaced where it is there by that name, and added where it is not.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["WRONG", "Block", "blocks", "commands", "write"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
WRONG = "wrong on purpose"
"""What the title of a block says that the reader takes back after the next run."""
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]*)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
DEFINITIONS = re.compile(r"\n\n+(?= *(?:async )?def )")


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, the file and the remark of its title, and its text."""

    language: str
    file: str
    remark: str
    text: str


def blocks() -> list[Block]:
    """Return the blocks that the reader acts on, in the page's order: commands, and Python that has a title."""
    found = []
    for language, title, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        file, _, remark = title.partition(", ")
        found.append(Block(language, file, remark, text))
    return [each for each in found if each.file or each.language == "console"]


def commands(block: Block) -> list[tuple[str, list[str]]]:
    """Return the commands of a console block, each with the lines that the page shows of its output."""
    found: list[tuple[str, list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append((line.removeprefix("$ "), []))
        elif line.strip() not in {"", "..."}:
            found[-1][1].append(line)
    return found


def write(block: Block, scaffold: Path) -> None:
    """Put a block of Python where its title says."""
    path = scaffold / block.file
    if block.remark == "all of it" or not path.exists():
        path.write_text(block.text, encoding="utf-8")
        return
    source = path.read_text(encoding="utf-8")
    if block.remark == "down to __init__":
        source = "\n".join([block.text, *source.splitlines()[_lines(source, "__init__", method=True)[1] + 1 :], ""])
    else:
        for definition in DEFINITIONS.split(block.text.rstrip()):
            source = _defined(source, definition)
    path.write_text(source, encoding="utf-8")


def _defined(source: str, definition: str) -> str:
    """Return `source` with this method, or function if it is not indented, in place of the one of its name."""
    name, method = definition.partition("def ")[2].partition("(")[0], definition.startswith(" ")
    first, last = _lines(source, name, method=method)
    lines = source.splitlines()
    spaced = [] if first < last else [""] if method else ["", ""]
    return "\n".join([*lines[:first], *spaced, definition, *lines[last:], ""])


def _lines(source: str, name: str, *, method: bool) -> tuple[int, int]:
    """Return where the definition of this name begins and ends, as a slice of lines, or where a new one belongs."""
    tree = ast.parse(source)
    (adapter,) = (node for node in tree.body if isinstance(node, ast.ClassDef))
    there = [
        node
        for node in (adapter.body if method else tree.body)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    for node in there:
        if node.name == name:
            return node.lineno - 1, node.end_lineno or 0
    end = (there[-1].end_lineno or 0) if method else len(source.splitlines())
    return end, end
