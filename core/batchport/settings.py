"""What a command is told: the backend's options as NAME=VALUE, and the file of `batchport worker --config`.

Called by `cli.py` and `worker_command.py`. A mistake is found while reading, and named by its place.
"""

from __future__ import annotations

import ast
import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchport.errors import UsageError

__all__ = ["LOG_LEVELS", "Config", "check_level", "read_config", "read_options"]

LOG_LEVELS = ("debug", "info", "warning", "error")

_RESOURCES: Mapping[str, type] = {"cpus": int, "memory_mib": int, "gpus": int, "time_limit_s": int, "extra": dict}
_KEYS: Mapping[str, type] = {
    **dict.fromkeys(("scheduler", "backend", "store", "name"), str),
    **dict.fromkeys(("max_jobs", "tasks_per_job", "width", "retries"), int),
    **dict.fromkeys(("python", "setup", "launcher", "log_level"), str),
    **dict.fromkeys(("capabilities", "code"), list),
    "options": dict,
    "resources": dict,
}
_CALLED = {str: "a string", int: "a whole number", list: "a list of strings", dict: "a table"}


@dataclass(frozen=True, slots=True)
class Config:
    """A file's content. `flags` has, by name, what counts where a flag is not given."""

    flags: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    """The backend's own."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """That of Resources."""


def read_options(given: Iterable[str]) -> dict[str, Any]:
    """Read NAME=VALUE pairs; a value that reads as a Python literal is taken as one. Raises UsageError.

    A text that reads as a number is quoted twice, once for the shell: --option "account='007'".
    """
    options: dict[str, Any] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals:
            raise UsageError(f"--option {each!r}: write it as NAME=VALUE")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
    return options


def read_config(path: Path) -> Config:
    """Read a TOML file of the worker's. Raises UsageError for what cannot be read, and for what means nothing."""
    try:
        told = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise UsageError(f"{path} is no TOML file: {error}") from error
    _check(path, "", told, _KEYS)
    options, resources = told.pop("options", {}), told.pop("resources", {})
    _check(path, "resources.", resources, _RESOURCES)
    if "log_level" in told:
        check_level(told["log_level"], f"{path}: log_level =")
    extra = resources.pop("extra", {})
    return Config(told | resources, options, extra)


def check_level(level: str, given_as: str) -> None:
    """Raise UsageError if there is no such log level."""
    if level not in LOG_LEVELS:
        raise UsageError(f"{given_as} {level!r}: must be one of {', '.join(LOG_LEVELS)}")


def _check(path: Path, within: str, told: Mapping[str, Any], known: Mapping[str, type]) -> None:
    for key, value in told.items():
        if key not in known:
            where = f"the keys of [{within[:-1]}]" if within else "the keys"
            hint = "" if within else _hint(key)
            raise UsageError(f"{path}: unknown key {within}{key}; {hint}{where} are: {', '.join(known)}")
        kind = known[key]
        fits = isinstance(value, kind) and not isinstance(value, bool)
        if not fits or (kind is list and not all(isinstance(each, str) for each in value)):
            raise UsageError(f"{path}: {within}{key} = {value!r}: must be {_CALLED[kind]}")


def _hint(key: str) -> str:
    if key in _RESOURCES:
        return "it belongs under [resources]; "
    near = difflib.get_close_matches(key, _KEYS, 1)
    return f"did you mean {near[0]}? " if near else ""
