"""The house: what README, CONTRIBUTING, docs and pyproject say is true."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import types
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest

from batchport import BatchExecutor, BatchWorkerAdapterBase, Reason, TaskFailedError

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "core" / "batchport"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
CONTRACTS: list[dict[str, Any]] = PYPROJECT["tool"]["importlinter"]["contracts"]


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def blocks(kind: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", read("README.md"), re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language == kind]


USE, ADAPTER, FAILING = blocks("python")


class Row(NamedTuple):
    """One job, as the stand-in for a house queue lists it."""

    id: str
    name: str
    state: str
    node: str
    exit_code: int | None


class Queue:
    """A house queue whose jobs are processes, two at a time; the client that README's adapter is written for."""

    calls: ClassVar[Counter[str]] = Counter()

    def __init__(self, url: str) -> None:
        self.url = url
        self.jobs: dict[str, tuple[str, subprocess.Popen[str]]] = {}

    def put(self, name: str, script: str, *, cpus: int, memory_mib: int | None) -> str:
        self.calls["put"] += 1
        assert (cpus, memory_mib) == (1, None)
        if sum(process.poll() is None for _, process in self.jobs.values()) >= 2:
            self.calls["full"] += 1
            raise QueueFull("the queue holds 2 jobs")
        process = subprocess.Popen(("bash",), stdin=subprocess.PIPE, text=True, start_new_session=True)
        assert process.stdin is not None
        process.stdin.write(script)
        process.stdin.close()
        job_id = str(len(self.jobs) + 1)
        self.jobs[job_id] = (name, process)
        return job_id

    def get(self, ids: Sequence[str]) -> Iterator[Row]:
        self.calls["get"] += 1
        for job_id in ids:
            name, process = self.jobs[job_id]
            code = process.poll()
            state = "running" if code is None else "done" if code == 0 else "deleted" if code < 0 else "failed"
            yield Row(job_id, name, state, "node-1", code)

    def delete(self, job_id: str) -> None:
        self.calls["delete"] += 1
        self.jobs[job_id][1].terminate()


class QueueFull(Exception):  # noqa: N818 - the house's own name for it
    """The queue takes no more jobs now."""


@pytest.fixture
def house_adapter(monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchWorkerAdapterBase]:
    house = types.ModuleType("house")
    vars(house).update(Queue=Queue, QueueFull=QueueFull)
    monkeypatch.setitem(sys.modules, "house", house)
    readme = types.ModuleType("readme")
    monkeypatch.setitem(sys.modules, "readme", readme)
    exec(ADAPTER, vars(readme))
    Queue.calls.clear()
    adapter: Any = readme.HouseAdapter(readme.Options())
    yield adapter
    for _, process in adapter.queue.jobs.values():
        process.kill()
        process.wait()


def test_the_readmes_adapter_runs_functions(house_adapter: BatchWorkerAdapterBase, tmp_path: Path) -> None:
    with BatchExecutor(house_adapter, tmp_path / "store", poll_s=(0.1, 0.2), results_s=0.05) as executor:
        assert list(executor.map(pow, [1, 2, 3, 4], [2, 2, 2, 2])) == [1, 4, 9, 16]
    assert Queue.calls["put"] - Queue.calls["full"] == 4


def test_the_readmes_adapter_tells_of_a_failure(house_adapter: BatchWorkerAdapterBase, tmp_path: Path) -> None:
    def die() -> None:
        os._exit(3)

    with BatchExecutor(house_adapter, tmp_path / "store", poll_s=(0.1, 0.2)) as executor:
        with pytest.raises(ZeroDivisionError):
            executor.submit(divmod, 1, 0).result()
        with pytest.raises(TaskFailedError, match="exit code 3") as raised:
            executor.submit(die).result()
    assert raised.value.failure.reason is Reason.RUNNER_CRASH
    assert "failed on node-1" in raised.value.failure.evidence


def test_the_readmes_script_runs_and_prints_its_results(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(USE)
    done = subprocess.run((sys.executable, script), check=True, capture_output=True, text=True, cwd=tmp_path)
    lines = len(USE.splitlines())
    assert done.stdout == f"{lines} [1024, 9]\n['a', 'b', 'c', 'h', 't']\n"
    assert done.stderr == ""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory limits need Linux's /proc")
def test_a_failing_task_says_what_the_readme_shows(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(FAILING)
    done = subprocess.run((sys.executable, script), check=False, capture_output=True, text=True, cwd=tmp_path)
    (shown,) = [text.splitlines() for text in blocks("") if "TaskFailedError" in text]
    said = done.stderr.splitlines()[-len(shown) :]
    assert [_same_each_time(line) for line in said] == [_same_each_time(line) for line in shown]


def _same_each_time(line: str) -> str:
    line = re.sub(r"load-[a-z0-9]{8}-1-1", "JOB", line)
    line = re.sub(r"used \d+ MiB", "used N MiB", line)
    line = re.sub(r" on \S+$", " on NODE", line)
    return re.sub(r"/\S+/jobs/run-[0-9a-f]+/", "FOLDER/", line)


RUNNING = [
    (heading, script, printed)
    for heading, section in re.findall(
        r"^## (.*?)\n(.*?)(?=^## |\Z)", read("docs/running.md"), re.MULTILINE | re.DOTALL
    )
    for script, printed in re.findall(r"```python\n(.*?)```\n\n```\n(.*?)```", section, re.DOTALL)
]


@pytest.mark.parametrize(("script", "printed"), [each[1:] for each in RUNNING], ids=[each[0] for each in RUNNING])
def test_a_script_of_the_page_on_running_prints_what_the_page_shows(script: str, printed: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(script)
    for arguments in [("--leave",), ()] if "--leave" in script else [()]:
        command = (sys.executable, "-W", "error", "script.py", *arguments)
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == ("" if arguments else printed)


def test_the_page_on_running_has_its_scripts() -> None:
    assert len(RUNNING) == read("docs/running.md").count("```python") - 1, "all but the Scaler worker, which has a test"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_every_link_to_a_file_leads_somewhere(page: str) -> None:
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", read(page))]
    assert [link for link in links if ":" not in link and not (ROOT / link).exists()] == []


def test_the_map_of_the_code_names_every_module_and_no_other() -> None:
    named = set(re.findall(r"^\| `([a-z_/]+\.py)` \|", read("CONTRIBUTING.md"), re.MULTILINE))
    modules = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if not path.name.startswith("__")}
    assert named == {name for name in modules if not name.startswith("testing/")}


def test_every_reason_is_explained() -> None:
    explained = re.findall(r"^### `([A-Z_]+)`$", read("docs/failures.md"), re.MULTILINE)
    assert sorted(explained) == sorted(reason.name for reason in Reason)


def test_every_promise_has_tests_of_its_own() -> None:
    promised = {int(number) for number in re.findall(r"^## (\d+)\.", read("docs/promises.md"), re.MULTILINE)}
    proved = {int(path.name.split("_")[2]) for path in (ROOT / "tests" / "promises").glob("test_promise_*.py")}
    assert promised == proved


def test_every_decision_is_in_the_sites_navigation() -> None:
    pages = {f"adr/{path.name}" for path in (ROOT / "docs" / "adr").glob("*.md")}
    assert pages == set(re.findall(r": (adr/\S+\.md)", read("mkdocs.yml")))


def test_every_pin_is_one_exact_release() -> None:
    marker = "[a-z_]+ [<>=!]+ '[^']+'"
    for pin in read("constraints.txt").splitlines():
        assert re.fullmatch(rf"[a-z0-9-]+==[0-9][0-9a-z.]*( ; {marker}( and {marker})*)?", pin), pin


def test_this_environment_is_the_pinned_one() -> None:
    installed = {each.name.lower().replace("_", "-").replace(".", "-"): each.version for each in distributions()}
    pins = [pin.split("==") for pin in read("constraints.txt").splitlines() if ";" not in pin]
    differing = [name for name, release in pins if installed.get(name, release) != release]
    assert differing == [], "run `uv sync`"


def test_the_core_needs_cloudpickle_and_obstore_only() -> None:
    walk = (
        "import importlib, pkgutil, sys, batchport\n"
        "skip = ('batchport.cli', 'batchport.demo', 'batchport.testing', 'batchport.runner.__main__')\n"
        "skip += ('batchport.hosts.scaler', 'batchport.hosts._scaler_link')\n"
        "skip += ('batchport.worker_command', 'batchport.serving')\n"
        "for module in pkgutil.walk_packages(batchport.__path__, 'batchport.'):\n"
        "    if not module.name.startswith(skip): importlib.import_module(module.name)\n"
        "import obstore\n"
        "tops = {name.partition('.')[0] for name in sys.modules}\n"
        "print(*sorted(name for name in tops - sys.stdlib_module_names if name[0] != '_'))\n"
    )
    done = subprocess.run((sys.executable, "-c", walk), check=True, capture_output=True, text=True)
    assert set(done.stdout.split()) <= {"batchport", "cloudpickle", "obstore", "typing_extensions"}


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract["name"])
def test_an_import_that_a_contract_forbids_is_seen(contract: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "batchport", ignore=shutil.ignore_patterns("__pycache__"))
    source = tmp_path.joinpath(*contract["source_modules"][-1].split("."))
    source = source / "__init__.py" if source.is_dir() else source.with_suffix(".py")
    with source.open("a") as file:
        file.write(f"\nimport {contract['forbidden_modules'][0]}\n")
    config = tmp_path / "importlinter.ini"
    config.write_text(_ini(contract))
    done = subprocess.run(
        ("lint-imports", "--no-cache", "--no-logo", "--config", config),
        cwd=tmp_path,
        env={"PATH": f"{Path(sys.executable).parent}", "PYTHONPATH": str(tmp_path)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert f"{contract['name']} BROKEN" in done.stdout
    assert f"{contract['source_modules'][-1]} -> {contract['forbidden_modules'][0]} (l." in done.stdout


def _ini(contract: dict[str, Any]) -> str:
    lines = ["[importlinter]", "root_package = batchport", "include_external_packages = True", ""]
    lines.append("[importlinter:contract:planted]")
    for key, value in contract.items():
        lines.append(
            f"{key} =" + ("".join(f"\n    {each}" for each in value) if isinstance(value, list) else f" {value}")
        )
    return "\n".join(lines)


def test_a_benchmark_that_does_not_exist_is_refused_with_those_that_do() -> None:
    known = sorted(path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py"))
    nox = (sys.executable, "-m", "nox", "--no-color", "-s", "bench", "--", "nothing")
    done = subprocess.run(nox, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"no benchmark is called 'nothing'; the benchmarks are: {', '.join(known)}" in done.stderr
