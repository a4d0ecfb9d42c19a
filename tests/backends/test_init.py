"""Finding backends by name: what is said of names and options that do not exist."""

from __future__ import annotations

import re

import pytest

from batchport.backends import installed_backends, make_adapter
from batchport.backends.local import LocalAdapter, Options
from batchport.errors import UsageError


def test_the_embedded_backend_is_installed() -> None:
    assert "local" in installed_backends()


def test_an_adapter_is_made_from_its_options_a_mapping_or_nothing() -> None:
    for options in (Options(), {"slots": 3}, None):
        assert isinstance(make_adapter("local", options), LocalAdapter)


def test_an_unknown_backend_is_refused_with_what_is_near_and_what_is_there() -> None:
    expected = "no backend is called 'locall'; did you mean 'local'? installed are: "
    with pytest.raises(UsageError, match=f"^{re.escape(expected)}.*A backend is found once its package is installed"):
        make_adapter("locall")


def test_an_unknown_option_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UsageError, match=r"^the backend 'local' has no option 'slot'; it has: folder, slots, q"):
        make_adapter("local", {"slot": 2})


def test_options_of_another_type_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^options for 'local' must be its Options or a mapping, and not int$"):
        make_adapter("local", 3)


@pytest.mark.parametrize(
    ("value", "kind"), [("3", "str"), (True, "bool"), (2.5, "float")], ids=["text", "yes or no", "a fraction"]
)
def test_an_option_of_another_type_is_refused_by_name(value: object, kind: str) -> None:
    expected = f"the backend 'local' takes slots as int | None, and {value!r} is of type {kind}"
    with pytest.raises(UsageError, match=f"^{re.escape(expected)}$"):
        make_adapter("local", {"slots": value})


def test_slots_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^Options\(slots=0\): must be at least 1, or None for all CPUs$"):
        make_adapter("local", {"slots": 0})
