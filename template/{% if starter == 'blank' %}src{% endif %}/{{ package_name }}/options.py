"""What users can set: `BatchExecutor(backend=..., options={"queue": "long"})` fills in the fields below."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Options:
    """The backend's options. Give each field a default that works, and a docstring that says what it does."""
