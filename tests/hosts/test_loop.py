"""A worker that crashes, by a bug, leaves nobody waiting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from batchport import BatchExecutor
from batchport.backends.local import LocalAdapter, Options
from batchport.hosts.executor import BrokenWorkerError
from batchport.worker import naming


def test_a_crash_of_the_worker_fails_all_futures(
    make_executor: Callable[..., BatchExecutor],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def name_the_first_only(label: str, epoch: naming.Epoch, serial: int, longest: int) -> str:
        if serial > 1:
            raise ArithmeticError("no more names")
        return job_name(label, epoch, serial, longest)

    job_name = naming.job_name
    monkeypatch.setattr(naming, "job_name", name_the_first_only)
    adapter = LocalAdapter(Options(folder=str(tmp_path / "jobs")))
    executor = make_executor(adapter, store=tmp_path / "store", name="ann", max_jobs=1)
    futures = [executor.submit(abs, -number) for number in range(4)]
    futures[2].cancel()
    assert futures[0].result() == 0
    for future in (futures[1], futures[3]):
        error = future.exception(30)
        assert isinstance(error, BrokenWorkerError)
        assert str(error).startswith("the worker 'ann' has crashed (ArithmeticError(")
        assert str(error).endswith("the log of 'batchport.executor' has the traceback")
        assert isinstance(error.__cause__, ArithmeticError)
    assert futures[2].cancelled()
    with pytest.raises(BrokenWorkerError):
        executor.submit(abs, -1)
    assert [record.getMessage() for record in caplog.records if record.name == "batchport.executor"] == [
        "the worker ann ended badly"
    ]


def test_what_a_backend_raises_at_its_close_is_logged_and_harms_no_future(
    make_executor: Callable[..., BatchExecutor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Stuck(LocalAdapter):
        def close(self) -> None:
            raise OSError("stuck")

    with make_executor(Stuck(Options(folder=str(tmp_path / "jobs"))), store=tmp_path / "store", name="ann") as executor:
        future = executor.submit(abs, -1)
    assert future.result() == 1
    assert "the worker ann ended badly" in caplog.messages
