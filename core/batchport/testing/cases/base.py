"""Cases: the fixtures that all cases share.

Inherited by each group of cases. `bench` is what a case asks for; it skips until all three methods are there.
A case holds since version 1 of the adapter contract, unless `since` says otherwise: a case that is stricter
than the contract was, or about something new in it, must not fail an adapter that was right when it was written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest

from batchport.testing.backend import Backend
from batchport.testing.bench import Bench
from batchport.testing.desk import Desk

__all__ = ["Cases", "since"]

METHODS = ("submit_job", "poll_jobs", "cancel_job")

_Case = TypeVar("_Case", bound=Callable[..., Any])


def since(contract: int) -> Callable[[_Case], _Case]:
    """Say of a case since which version of the adapter contract it holds.

    On an adapter that states an older one it is not run, and the summary says so.
    """

    def mark(case: _Case) -> _Case:
        case.since = contract  # type: ignore[attr-defined]  # a function holds what is put there
        return case

    return mark


class Cases:
    """A group of cases. Each works through the public contract alone, on jobs of its own.

    Fixtures of class scope are class methods, since pytest 9 warns of all others.
    """

    patience_s: ClassVar[float] = 45
    """How long, in seconds, a case waits for the backend to do something; raise it for a slow one."""

    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls) -> Backend:
        """Return the backend under test. The one fixture that a subclass must have."""
        pytest.fail(f"{cls.__name__} must define the fixture backend, of scope class", pytrace=False)

    @pytest.fixture(scope="class")
    @classmethod
    def opening(cls, backend: Backend) -> Iterator[Desk | Exception]:
        """Open an adapter; give its error if that fails, so that one case tells it and the others wait."""
        try:
            desk = Desk(backend.adapter(), cls.patience_s).__enter__()
        except Exception as error:  # noqa: BLE001 - an adapter under test may raise anything
            yield error
            return
        yield desk
        desk.__exit__()

    @pytest.fixture(autouse=True)
    def _is_owed(self, request: pytest.FixtureRequest) -> None:
        """Leave out a case that is newer than the contract for which the adapter was written."""
        if (needed := getattr(request.function, "since", 1)) == 1:
            return
        adapter = request.getfixturevalue("desk").adapter
        if needed > adapter.contract:
            pytest.skip(f"holds since contract {needed}; this adapter was written for {adapter.contract}")

    @pytest.fixture(scope="class")
    @classmethod
    def desk(cls, opening: Desk | Exception) -> Desk:
        """Return the opened adapter's desk."""
        if isinstance(opening, Exception):
            pytest.skip(f"waits for open, which raised {type(opening).__name__}: {opening}")
        return opening

    @pytest.fixture(scope="class")
    @classmethod
    def benches(cls) -> Iterator[list[Bench]]:
        """Collect the benches of all cases, and remove their marks when no job is left to leave more."""
        benches: list[Bench] = []
        yield benches
        for bench in benches:
            bench.clear()

    @pytest.fixture(scope="class")
    @classmethod
    def missing(cls, backend: Backend, desk: Desk, benches: list[Bench]) -> dict[str, str]:
        """Return where each of the three methods is that is not written yet, by calling it once."""
        bench = Bench(backend, desk, cls.patience_s)
        benches.append(bench)
        spec, _ = bench.probe("mark=run")
        job_id = "0"
        missing = {}
        for method in METHODS:
            try:
                if method == "submit_job":
                    job_id = desk.submit(spec)
                elif method == "poll_jobs":
                    desk.poll([job_id])
                else:
                    desk.cancel(job_id)
            except NotImplementedError as error:
                if where := _raised_in(error, method):
                    missing[method] = where
            except Exception:  # noqa: BLE001, S110 - it is there, and what is wrong with it the cases tell
                pass
        return missing

    @pytest.fixture
    def bench(self, backend: Backend, desk: Desk, missing: dict[str, str], benches: list[Bench]) -> Iterator[Bench]:
        """Return the bench of one case, and end all of the case's jobs after it."""
        if missing:
            pytest.skip(f"waits for {', '.join(missing)}")
        bench = Bench(backend, desk, self.patience_s)
        benches.append(bench)
        yield bench
        bench.end()


def _raised_in(error: NotImplementedError, method: str) -> str | None:
    """Return file, line and name of `method` if it raised this itself, and not something that it called."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or (code := trace.tb_frame.f_code).co_name != method:
        return None
    file = os.path.relpath(code.co_filename, Path.cwd())
    return f"{file}, line {code.co_firstlineno}: {code.co_qualname}"
