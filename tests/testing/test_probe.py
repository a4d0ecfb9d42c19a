from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from batchport.backends.local import LocalAdapter, Options
from batchport.processes import start_of
from batchport.testing import Backend, bench
from batchport.testing.bench import unlike
from batchport.testing.desk import Desk
from batchport.testing.marks import Marks, here


def probe(marks: Marks, *steps: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "batchport.testing.probe", marks.url, marks.key, *steps])


def test_a_probe_s_mark_tells_which_process_it_was(tmp_path: Path) -> None:
    marks = Marks(str(tmp_path), "key")
    process = probe(marks, "say=this", "mark=run")
    assert process.wait() == 0
    (mark,) = marks.read("run")
    assert (mark.pid, mark.host) == (process.pid, here())
    assert list(mark.words[2:]) == ["say=this", "mark=run"]


def test_two_probes_with_one_key_leave_two_marks(tmp_path: Path) -> None:
    marks = Marks(str(tmp_path), "key")
    for _ in range(2):
        assert probe(marks, "mark=run").wait() == 0
    assert len(marks.read("run")) == 2
    assert marks.read("ru") == []


def test_a_probe_holds_until_it_is_released(tmp_path: Path) -> None:
    marks = Marks(str(tmp_path), "key")
    process = probe(marks, "mark=run", "hold", "exit=7")
    while not (runs := marks.read("run")) or marks.beat(runs[0].attempt) is None:
        assert process.poll() is None
    assert start_of(process.pid) == runs[0].started
    marks.release()
    assert process.wait() == 7
    assert start_of(process.pid) is None


def test_a_process_on_another_host_is_gone_when_its_beat_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "STILL_S", 1.5)
    backend = Backend(lambda: LocalAdapter(Options()), str(tmp_path), sys.executable)
    watcher = bench.Bench(backend, Desk(backend.adapter(), 1), patience_s=1)
    marks = Marks(str(tmp_path), "key")
    process = probe(marks, "mark=run", "hold")
    while not (runs := marks.read("run")) or marks.beat(runs[0].attempt) is None:
        assert process.poll() is None
    mark = replace(runs[0], host="elsewhere")
    with pytest.raises(
        pytest.fail.Exception, match=f"process {process.pid}, .* on elsewhere, to be gone; last seen: it beats"
    ):
        watcher.gone(marks, mark)
    marks.release()
    process.wait()
    watcher.gone(marks, mark)


def test_a_probe_whose_marks_are_cleared_ends_and_leaves_no_more(tmp_path: Path) -> None:
    marks = Marks(str(tmp_path), "key")
    process = probe(marks, "mark=run", "hold", "mark=end")
    while not (runs := marks.read("run")) or marks.beat(runs[0].attempt) is None:
        assert process.poll() is None
    marks.clear()
    assert process.wait() == 1
    assert marks.read("end") == []


def test_a_job_needs_no_pytest(tmp_path: Path) -> None:
    code = "import sys, batchport.testing.probe, batchport.testing.functions; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 0


def test_a_zombie_counts_as_gone() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert start_of(process.pid) is None
    process.wait()


@pytest.mark.parametrize("job_id", ["1234", "999", "probe-abc123", "probe", "99a"])
def test_an_unlike_id_is_another_one(job_id: str) -> None:
    assert unlike(job_id) != job_id
