"""Users reach the adapter by the entry point in pyproject.toml; a class that moved must be renamed there too."""

from __future__ import annotations

import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

from batchport_aws_batch.adapter import Adapter


def test_the_entry_point_is_the_adapter() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    [(name, value)] = project["entry-points"]["batchport.backends"].items()
    assert EntryPoint(name, value, "batchport.backends").load() is Adapter
