"""Cases about the adapter itself: its three methods are there, it opens, and it says what it accepts."""

from __future__ import annotations

import dataclasses

import pytest

from batchport.testing.bench import Bench
from batchport.testing.cases.base import Cases
from batchport.testing.desk import Desk

__all__ = ["StartingCases"]


class StartingCases(Cases):
    """The adapter is complete and can be opened."""

    def test_submit_job_is_implemented(self, missing: dict[str, str]) -> None:
        """submit_job is written."""
        _is_implemented("submit_job", missing)

    def test_poll_jobs_is_implemented(self, missing: dict[str, str]) -> None:
        """poll_jobs is written."""
        _is_implemented("poll_jobs", missing)

    def test_cancel_job_is_implemented(self, missing: dict[str, str]) -> None:
        """cancel_job is written."""
        _is_implemented("cancel_job", missing)

    def test_the_adapter_opens(self, opening: Desk | Exception, request: pytest.FixtureRequest) -> None:
        """An adapter opens without an error, has the contract's methods, and has its limits then."""
        if isinstance(opening, Exception):
            raise opening
        request.getfixturevalue("bench")

    def test_options_are_a_frozen_dataclass(self, bench: Bench) -> None:
        """options_type is a frozen dataclass, so that options can be named on a command line, and stay."""
        adapter = bench.desk.adapter
        kind = getattr(adapter, "options_type", None)
        assert dataclasses.is_dataclass(kind), (
            f"{type(adapter).__name__}.options_type is {kind!r}: set it to the adapter's dataclass of options"
        )
        is_frozen = getattr(kind, "__dataclass_params__").frozen  # noqa: B009 - typeshed does not know it
        assert is_frozen, f"{kind} can be changed: write @dataclass(frozen=True)"

    def test_what_jobs_need_is_in_place(self, bench: Bench) -> None:
        """check() finds all well on a backend that runs jobs, and each Check says what it looked at."""
        if not bench.desk.has("check"):
            pytest.skip("check is not overridden: `batchport doctor` has nothing to look at")
        checks = bench.desk.check()
        wrong = [f"{check.what}: {check.advice or 'and no advice is given'}" for check in checks if not check.ok]
        assert not wrong, "check() is not content: " + "; ".join(wrong)
        assert all(check.what.strip() for check in checks), "a Check must say what it looked at"


def _is_implemented(method: str, missing: dict[str, str]) -> None:
    if method not in missing:
        return
    pytest.fail(
        f"implement {method}\n"
        f"  in {missing[method]}\n"
        f"  Its docstring says what it owes. Read on: docs/writing-a-backend.md#{method} in batchport's repository.",
        pytrace=False,
    )
