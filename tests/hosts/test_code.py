"""`code`: modules and folders that travel to jobs."""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from batchport import BatchExecutor, TaskFailedError, UsageError
from batchport.hosts._code import zips_of

Make = Callable[..., BatchExecutor]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Make a package that is on this process's path, and is not to be on the jobs'."""
    folder = tmp_path / "here" / "travels"
    (folder / "inner" / "__pycache__").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / "__init__.py").write_text("from travels.inner.deep import name\n", encoding="utf-8")
    (folder / "inner" / "__init__.py").touch()
    (folder / "inner" / "deep.py").write_text("def name(): return __file__\n", encoding="utf-8")
    (folder / "inner" / "data.txt").write_text("data", encoding="utf-8")
    for unwanted in ("inner/__pycache__/deep.pyc", ".git/config", ".hidden", "old.pyc"):
        (folder / unwanted).write_bytes(b"unwanted")
    (folder.parent / "single.py").write_text("def name(): return __file__\n", encoding="utf-8")
    monkeypatch.syspath_prepend(folder.parent)
    yield importlib.import_module("travels")
    for name in [name for name in sys.modules if name.partition(".")[0] in {"travels", "single"}]:
        del sys.modules[name]


async def names_in(code: Any) -> list[str]:
    (blob,) = zips_of([code])
    data = await blob.read()
    assert blob.key == hashlib.sha256(data).hexdigest()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.namelist()


IN_PACKAGE = ["travels/__init__.py", "travels/inner/__init__.py", "travels/inner/data.txt", "travels/inner/deep.py"]


async def test_a_package_comes_whole_and_under_its_name(package: ModuleType) -> None:
    assert await names_in(package) == IN_PACKAGE


async def test_a_module_is_its_file(package: ModuleType) -> None:
    assert await names_in(importlib.import_module("single")) == ["single.py"]


async def test_a_folder_holds_modules_or_is_a_package_itself(package: ModuleType, tmp_path: Path) -> None:
    assert await names_in(tmp_path / "here") == ["single.py", *IN_PACKAGE]
    assert await names_in(str(tmp_path / "here" / "travels")) == IN_PACKAGE


def test_equal_content_makes_equal_bytes(package: ModuleType, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    deep = tmp_path / "there" / "travels" / "inner" / "deep.py"
    os.utime(deep, (0, 0))
    deep.chmod(0o700)
    (first,), (second,) = zips_of([tmp_path / "here"]), zips_of([tmp_path / "there"])
    assert first.key == second.key
    deep.write_text("def name(): return 'other'\n", encoding="utf-8")
    assert zips_of([tmp_path / "there"])[0].key != first.key


def refusal(code: Any) -> str:
    with pytest.raises(UsageError) as caught:
        BatchExecutor("local", code=code)
    return str(caught.value)


def test_what_is_neither_module_nor_folder_is_refused(package: ModuleType, tmp_path: Path) -> None:
    assert refusal([7]) == "code=[7]: an object of type int; give an imported module, or a folder that holds modules"
    assert refusal(["/nowhere"]) == (
        "code=['/nowhere']: there is no such folder; give an imported module, or a folder that holds modules"
    )
    assert refusal("folder") == "code='folder': give a list of modules and folders, such as code=['folder']"
    assert refusal(package).endswith("give a list of modules and folders, such as code=[travels]")
    assert refusal([sys]) == "code=[sys]: this module is part of Python itself, or in no file that could be taken along"
    assert refusal([sys.modules["travels.inner"]]) == (
        "code=[travels.inner]: give the whole package that it is part of: code=[travels]"
    )


def test_a_package_that_is_not_installed_in_the_job_runs_there(make_executor: Make, package: ModuleType) -> None:
    single = importlib.import_module("single")
    with make_executor(path=[]) as executor, pytest.raises(TaskFailedError, match=r"code=\[travels\]"):
        executor.submit(package.name).result()
    with make_executor(path=[], code=[package, single]) as executor:
        files = [executor.submit(package.name).result(), executor.submit(single.name).result()]
    assert [Path(file).name for file in files] == ["deep.py", "single.py"]
    assert not any(Path(file).exists() for file in files), "it was unzipped for the job, and is gone with it"


def test_code_is_in_the_store_once_and_gone_after_the_last_job(
    make_executor: Make, package: ModuleType, tmp_path: Path
) -> None:
    with make_executor(store=tmp_path / "store", name="w", path=[], code=[package], max_jobs=1) as executor:
        futures = [executor.submit(package.name) for _ in range(3)]
        futures[0].result()
        assert len(list((tmp_path / "store" / "w" / "blobs").iterdir())) == 1
    assert not list((tmp_path / "store" / "w" / "blobs").iterdir())
