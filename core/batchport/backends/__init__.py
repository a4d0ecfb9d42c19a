"""Finding an adapter class by the name that a user gives.

Called by hosts and the command line. A backend is whatever an installed package offers under the entry
point group `batchport.backends`.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from importlib.metadata import entry_points
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from batchport.adapter import BatchWorkerAdapterBase
from batchport.errors import UsageError

__all__ = ["EMBEDDED", "installed_backends", "make_adapter"]

EMBEDDED = "local"
"""The backend that needs nothing but this machine; only for it may a host choose the store itself."""


def installed_backends() -> list[str]:
    """Return the names of all backends that are installed, sorted."""
    return sorted({point.name for point in entry_points(group="batchport.backends")})


def make_adapter(name: str, options: object = None) -> BatchWorkerAdapterBase:
    """Return the adapter of the backend `name`, made with `options`.

    `options` is the backend's own Options, or a mapping of its fields, or None for all defaults. Raises
    UsageError if there is no such backend, if its class is no adapter, if an option does not exist, or if it is of
    another type than the Options say.
    """
    points = [point for point in entry_points(group="batchport.backends") if point.name == name]
    if not points:
        known = installed_backends()
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        message = (
            f"no backend is called {name!r}; {hint}installed are: {', '.join(known)}. "
            "A backend is found once its package is installed in this Python"
        )
        raise UsageError(message)
    kind = points[0].load()
    if not (isinstance(kind, type) and issubclass(kind, BatchWorkerAdapterBase)):
        message = f"the backend {name!r} is {points[0].value}, which is no BatchWorkerAdapterBase"
        raise UsageError(message)
    make: Callable[[object], BatchWorkerAdapterBase] = kind  # every adapter takes its Options
    return make(_options(name, kind, options))


def _options(name: str, kind: type[BatchWorkerAdapterBase], options: object) -> Any:
    wanted = kind.options_type
    if isinstance(options, wanted):
        return options
    if options is not None and not isinstance(options, Mapping):
        message = f"options for {name!r} must be its {wanted.__name__} or a mapping, and not {type(options).__name__}"
        raise UsageError(message)
    given = dict(options or {})
    assert is_dataclass(wanted)
    known = [field.name for field in fields(wanted)]
    if unknown := [each for each in given if each not in known]:
        message = f"the backend {name!r} has no option {unknown[0]!r}; it has: {', '.join(known) or 'none'}"
        raise UsageError(message)
    hints = get_type_hints(wanted)
    for option, value in given.items():
        if not _fits(value, hints[option]):
            message = (
                f"the backend {name!r} takes {option} as {inspect.formatannotation(hints[option])}, and {value!r} is "
                f"of type {type(value).__name__}"
            )
            raise UsageError(message)
    try:
        return wanted(**given)
    except TypeError as error:
        message = f"the options of {name!r} are not complete: {error}"
        raise UsageError(message) from error


def _fits(value: object, hint: Any) -> bool:
    """Return whether a value is of a type, if that is one that a command line can tell, or a union of such."""
    if get_origin(hint) is UnionType:
        return any(_fits(value, each) for each in get_args(hint))
    if hint not in (str, int, float, bool, NoneType):
        return True
    return type(value) is hint or (hint is float and type(value) is int)
