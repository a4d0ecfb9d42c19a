"""Code that came along with a job as zips: unzipped once, importable first of all, and gone at the end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile

import pytest

if TYPE_CHECKING:
    from tests.runner.conftest import Job

    Wait = Callable[[Callable[[], object]], None]

BY_NAME = b"ctheir_package.part\nf\n."
"""A function pickled by reference, as one of an importable module is."""
PACKAGE = {"their_package/__init__.py": "", "their_package/part.py": "def f(*args): return 'theirs', *args, __file__"}
RESEND = (
    "The store lost or changed what the worker wrote: submit the task again, and check the store if it happens again."
)


@pytest.fixture(name="folder")
def _folder(job: Job, tmp_path: Path) -> Path:
    """Where the job makes its temporary folders."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    job.env["TMPDIR"] = str(folder)
    return folder


def told(fields: dict[str, Any]) -> tuple[str | None, str, str]:
    return fields["reason"], fields["message"], fields["advice"]


@pytest.mark.parametrize("inline", [True, False])
def test_code_that_came_along_can_be_imported(job: Job, folder: Path, *, inline: bool) -> None:
    job.offer((BY_NAME, 1), code=[job.zip(PACKAGE)], inline=inline)
    assert job.run() == (0, "", "")
    assert job.result()[:2] == ("theirs", 1)
    assert job.result()[2].startswith(f"{folder}/batchport-")
    assert list(folder.iterdir()) == []


def test_code_comes_before_the_path_and_the_first_zip_before_the_second(job: Job, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("name = 'path'")
    (tmp_path / "b.py").write_text("name = 'path'")
    (tmp_path / "c.py").write_text("name = 'path'")

    def f() -> list[str]:
        from importlib import import_module

        return [import_module(name).name for name in "abc"]

    first, second = job.zip({"a.py": "name = 'first'"}), job.zip({"a.py": "name = 'second'", "b.py": "name = 'second'"})
    job.offer(f, code=[first, second], path=[str(tmp_path)])
    job.run()
    assert job.result() == ["first", "second", "path"]


def test_code_is_unzipped_once_for_all_tasks_of_a_pack(job: Job, folder: Path) -> None:
    job.offer(*[BY_NAME] * 3, code=[job.zip(PACKAGE)], width=2)
    job.run()
    assert len({job.result(place)[-1] for place in range(3)}) == 1


def test_code_is_not_unzipped_for_a_job_that_has_nothing_to_run(job: Job, folder: Path) -> None:
    job.offer(BY_NAME, code=["not there"])
    job.stop(0)
    assert job.run()[0] == 0
    assert job.left() == [(0, "stopped")]


def test_code_is_gone_after_a_crash(job: Job, folder: Path) -> None:
    job.offer(lambda: os._exit(7), code=[job.zip(PACKAGE)])
    assert job.run()[0] == 1
    assert list(folder.iterdir()) == []


def test_code_is_gone_after_a_runner_was_told_to_end(job: Job, folder: Path, tmp_path: Path, wait_until: Wait) -> None:
    def f() -> None:
        (tmp_path / "running").touch()
        time.sleep(300)

    job.offer(f, code=[job.zip(PACKAGE)])
    runner = job.start()
    wait_until((tmp_path / "running").exists)
    assert len(list(folder.iterdir())) == 1
    runner.terminate()
    assert runner.wait(5) == 143
    assert list(folder.iterdir()) == []


def test_code_is_gone_when_the_store_stays_out_of_reach(job: Job, folder: Path) -> None:
    job.first("pack.PAUSES_S = (0.01,)")
    job.offer((lambda out: Path(out).touch(), str(job.store.root / job.keys.out)), code=[job.zip(PACKAGE)])
    assert job.run()[0] == 74
    assert list(folder.iterdir()) == []


def test_code_is_gone_though_a_task_that_is_given_up_still_writes_to_it(job: Job, folder: Path, tmp_path: Path) -> None:
    def write() -> None:
        import sys
        from itertools import count

        for number in count():
            Path(sys.path[0], str(number)).mkdir()
            (tmp_path / "writing").touch()

    def drop(out: str) -> None:
        while not (tmp_path / "writing").exists():
            time.sleep(0.01)
        Path(out).touch()

    job.first("pack.PAUSES_S = (0.01,)")
    job.offer(write, (drop, str(job.store.root / job.keys.out)), code=[job.zip(PACKAGE)], width=2)
    assert job.run()[0] == 74
    assert list(folder.iterdir()) == []


def test_the_child_does_not_remove_the_code_of_its_siblings(job: Job, folder: Path) -> None:
    job.offer(lambda: None, BY_NAME, code=[job.zip(PACKAGE)])
    assert job.run()[0] == 0
    assert job.result(1)[0] == "theirs"


@pytest.mark.parametrize("name", ["/absolute.py", "../above.py", "package/../../above.py"])
def test_a_zip_that_would_write_outside_its_folder_is_refused(job: Job, folder: Path, name: str) -> None:
    digest = job.zip({"good.py": "", name: "evil"})
    job.offer(lambda: 1, lambda: 2, code=[digest])
    assert job.run()[0] == 1
    assert job.left() == [(0, "evidence"), (1, "evidence")]
    message = f"The code that came along, ann/blobs/{digest}, would write to {name!r}, outside of its folder."
    assert told(job.fields("evidence", 1)) == ("PAYLOAD", message, RESEND)
    assert list(folder.iterdir()) == []


def test_a_zip_that_is_missing_fails_every_task(job: Job, folder: Path) -> None:
    job.offer(lambda: 1, lambda: 2, code=[job.zip(PACKAGE), "gone"])
    assert job.run()[0] == 1
    assert job.left() == [(0, "evidence"), (1, "evidence")]
    message = "The code that came along, ann/blobs/gone, is not in the store."
    assert told(job.fields("evidence")) == ("PAYLOAD", message, RESEND)
    assert list(folder.iterdir()) == []


def test_a_zip_that_went_with_its_manifest_means_superseded(job: Job, folder: Path) -> None:
    job.first(
        "get = FolderStore.get\n"
        "def gone(self, key):\n"
        "    if 'blobs' not in key: return get(self, key)\n"
        f"    self.delete([{job.keys.manifest(job.name)!r}])\n"
        "FolderStore.get = gone"
    )
    job.offer(lambda: 1, code=["gone"])
    assert job.run()[0] == 0
    assert job.left() == []
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("at", [0, 40, -10])
def test_a_zip_that_is_damaged_says_so(job: Job, folder: Path, at: int) -> None:
    data = BytesIO()
    with ZipFile(data, "w") as archive:
        archive.writestr("a.py", "spam = 1")
    damaged = bytearray(data.getvalue())
    damaged[at] ^= 0xFF
    job.store.put(job.keys.blob("zip"), bytes(damaged))
    job.offer(lambda: 1, code=["zip"])
    assert job.run()[0] == 1
    reason, message, advice = told(job.fields("evidence"))
    assert (reason, advice) == ("PAYLOAD", RESEND)
    assert message.startswith("The code that came along, ann/blobs/zip, is damaged: ")


def test_code_that_finds_no_room_says_where(job: Job, folder: Path) -> None:
    job.first("import tempfile\ndef full(**_): raise OSError(28, 'No space left on device')\ntempfile.mkdtemp = full")
    job.offer(lambda: 1, code=[job.zip(PACKAGE)])
    assert job.run()[0] == 1
    assert told(job.fields("evidence")) == (
        "ENVIRONMENT",
        "The code that came along cannot be unzipped in the job: [Errno 28] No space left on device.",
        "Point TMPDIR to a folder of the job's machine that has room, in the worker's `setup`.",
    )
