"""The embedded backend, through the adapter's methods and with real processes, watched from outside."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from batchport.backends import _supervisor
from batchport.backends.local import LocalAdapter, Options
from batchport.errors import BackendUnusableError, Reason, RejectedJobError
from batchport.jobs import JobSpec, JobState, JobStatus, Resources

MEMORY_MIB = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20


def until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 40
    while not holds():
        assert time.monotonic() < deadline, f"waited 40 s for: {what}"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    return _supervisor.birth(pid) is not None


class House:
    """A folder of its own with an adapter on it, and the jobs of one test."""

    def __init__(self, folder: Path, slots: int = 4) -> None:
        self.folder = folder
        self.adapter = self.another(slots)

    def another(self, slots: int = 4, worker: str = "w") -> LocalAdapter:
        adapter = LocalAdapter(Options(folder=str(self.folder / "house"), slots=slots))
        adapter.open(worker)
        return adapter

    def submit(self, name: str, python: str, resources: Resources | None = None, **env: str) -> str:
        script = self.folder / f"{name}.py"
        script.write_text(python)
        command = (sys.executable, "-I", "-S", str(script))
        return self.adapter.submit_job(JobSpec(name, "", command, env, resources or Resources()))

    def status(self, name: str) -> JobStatus:
        (status,) = self.adapter.poll_jobs([name])
        return status

    def ended(self, name: str) -> JobStatus:
        until(lambda: self.status(name).state.is_final, f"the end of {name}")
        return self.status(name)

    def running(self, name: str) -> JobStatus:
        until(lambda: self.status(name).state is JobState.RUNNING, f"the start of {name}")
        return self.status(name)

    def mark(self, name: str) -> str:
        """Wait for the file that a job wrote as a whole, and return what is in it."""
        until((self.folder / name).exists, f"the mark {name}")
        return (self.folder / name).read_text()

    def record(self, name: str) -> dict[str, str]:
        record = _supervisor.read_record(str(self.adapter.jobs / name))
        assert record
        return record


SLEEP = "import time\ntime.sleep(600)\n"


def marking(mark: Path, text: str) -> str:
    """Python that writes `text`, an expression, so that nobody sees half of it."""
    draft = f"{mark}.new"
    return f"import os\nopen({draft!r}, 'w').write(str({text}))\nos.rename({draft!r}, {str(mark)!r})\n"


@pytest.fixture
def house(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[House]:
    house = House(tmp_path, slots=getattr(request, "param", 4))
    yield house
    names = [folder.name for folder in house.adapter.jobs.glob("*")]
    house.adapter.cancel_jobs(names)
    until(lambda: all(each.state.is_final for each in house.adapter.poll_jobs(names)), "the end of all jobs")


def test_a_job_that_ends_well_succeeds_and_left_its_mark(house: House, tmp_path: Path) -> None:
    assert (
        house.submit("good", marking(tmp_path / "mark", "os.environ['GIVEN'] + os.environ['HOME']"), GIVEN="a/b=c")
        == "good"
    )
    status = house.ended("good")
    assert (status.state, status.reason, status.exit_code, status.name) == (JobState.SUCCEEDED, None, 0, "good")
    assert house.mark("mark") == "a/b=c" + os.environ["HOME"]


def test_a_job_runs_in_the_submitters_folder_in_a_session_of_its_own_with_nothing_to_read(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    house.submit(
        "where",
        "import sys\n" + marking(tmp_path / "mark", "(os.getcwd(), os.getsid(0) == os.getpid(), sys.stdin.read())"),
    )
    assert house.mark("mark") == str((str(tmp_path), True, ""))


def test_an_exit_code_is_reported(house: House) -> None:
    house.submit("bad", "raise SystemExit(7)")
    status = house.ended("bad")
    assert (status.state, status.reason, status.exit_code) == (JobState.FAILED, None, 7)
    assert status.evidence == f"exit code 7, on {os.uname().nodename}"


def test_a_job_that_was_killed_reports_its_signal(house: House) -> None:
    house.submit("killed", "import os\nos.kill(os.getpid(), 11)")
    status = house.ended("killed")
    assert (status.state, status.reason, status.exit_code) == (JobState.FAILED, None, 128 + 11)
    assert status.evidence.startswith("ended by signal SIGSEGV, on ")


def test_a_command_that_does_not_exist_fails_with_the_shells_words(house: House) -> None:
    house.adapter.submit_job(JobSpec("none", "", ("/no/such/python",), {}, Resources()))
    assert house.ended("none").exit_code == 127
    status = house.adapter.inspect_job("none")
    assert status
    assert "/no/such/python: No such file or directory" in status.evidence


def test_inspecting_a_job_adds_the_end_of_its_log_and_where_it_ran(house: House) -> None:
    house.submit(
        "talker", "import sys\nprint('first' + 'x' * 9000)\nsys.stdout.flush()\nprint('last', file=sys.stderr)"
    )
    house.ended("talker")
    status = house.adapter.inspect_job("talker")
    assert status
    assert status.evidence.startswith(
        f"exit code 0, on {os.uname().nodename}\n{house.adapter.jobs}/talker/log ends with:\nx"
    )
    assert status.evidence.endswith("x\nlast\n")
    assert "first" not in status.evidence
    assert len(status.evidence) < 4500


def test_inspecting_a_job_that_printed_nothing_says_so(house: House) -> None:
    house.submit("silent", "")
    house.ended("silent")
    status = house.adapter.inspect_job("silent")
    assert status
    assert status.evidence == f"exit code 0, on {os.uname().nodename}\n{house.adapter.jobs}/silent/log is empty"


def test_a_job_over_its_time_limit_is_asked_to_end_and_reported_as_timeout(house: House, tmp_path: Path) -> None:
    tidy = "import signal, sys\ndef tidy(*_):\n    " + marking(tmp_path / "mark", "1").replace("\n", "\n    ")
    house.submit("slow", tidy + "sys.exit(3)\nsignal.signal(15, tidy)\n" + SLEEP, Resources(time_limit_s=1))
    status = house.ended("slow")
    assert (status.state, status.reason, status.exit_code) == (JobState.FAILED, Reason.TIMEOUT, 3)
    assert status.evidence.startswith("it ran longer than its time limit of 1 s, exit code 3, on ")
    assert house.mark("mark") == "1"


def test_a_job_that_ignores_sigterm_is_killed_after_the_kill_wait(house: House) -> None:
    house.submit("deaf", "import signal\nsignal.signal(15, signal.SIG_IGN)\n" + SLEEP, Resources(time_limit_s=1))
    status = house.ended("deaf")
    assert (status.reason, status.exit_code) == (Reason.TIMEOUT, 128 + 9)


def test_a_job_over_its_memory_limit_is_killed_with_what_it_used(house: House) -> None:
    house.submit("fat", "fat = bytearray(b'x') * (200 << 20)\n" + SLEEP, Resources(memory_mib=100))
    status = house.ended("fat")
    assert (status.state, status.reason, status.exit_code) == (JobState.FAILED, Reason.OUT_OF_MEMORY, 128 + 9)
    assert status.evidence.startswith("its processes used ")
    assert " MiB, and 100 MiB were allowed, ended by signal SIGKILL, on " in status.evidence


def test_memory_that_forked_processes_share_counts_once(house: House) -> None:
    fork = "import os, time\nshared = bytearray(b'x') * (60 << 20)\nos.fork()\nos.fork()\ntime.sleep(0.6)\n"
    house.submit("forks", fork, Resources(memory_mib=120))
    assert house.ended("forks").state is JobState.SUCCEEDED


def test_a_running_job_can_be_cancelled_more_than_once_and_all_its_processes_end(house: House, tmp_path: Path) -> None:
    family = "import os\nif not os.fork():\n    os.setpgid(0, 0)\n    if not os.fork(): os.setsid()\n"
    house.submit(
        "family",
        family
        + marking(tmp_path / "mark-", "os.getpid()").replace("mark-", "mark-{os.getpid()}").replace("'/", "f'/")
        + SLEEP,
    )
    until(lambda: len(list(tmp_path.glob("mark-*[0-9]"))) == 3, "three processes")
    pids = [int(mark.read_text()) for mark in tmp_path.glob("mark-*[0-9]")]
    assert all(map(is_alive, pids))
    house.adapter.cancel_job("family")
    house.adapter.cancel_job("family")
    status = house.ended("family")
    assert (status.state, status.reason, status.exit_code) == (JobState.CANCELLED, Reason.CANCELLED, 128 + 15)
    assert status.evidence.startswith("cancelled while it ran, ended by signal SIGTERM, on ")
    assert not any(map(is_alive, pids))


@pytest.mark.parametrize("house", [1], indirect=True, ids=["slots-1"])
def test_a_queued_job_that_is_cancelled_never_runs(house: House, tmp_path: Path) -> None:
    house.submit("first", SLEEP)
    house.running("first")
    for name in ("second", "third"):  # one holds the turnstile, one waits for it
        house.submit(name, marking(tmp_path / "mark", "1"))
    house.adapter.cancel_jobs(["third", "second", "unknown"])
    for name in ("second", "third"):
        status = house.ended(name)
        assert (status.state, status.reason, status.exit_code) == (JobState.CANCELLED, Reason.CANCELLED, None)
        assert status.evidence == "cancelled while it waited for a slot; it never ran"
    house.adapter.cancel_job("first")
    house.ended("first")
    assert not (tmp_path / "mark").exists()


def test_cancelling_a_job_that_is_unknown_or_over_changes_nothing(house: House) -> None:
    house.adapter.cancel_job("unknown")
    house.submit("over", "")
    before = house.ended("over")
    house.adapter.cancel_job("over")
    assert house.status("over") == before
    assert list(house.adapter.poll_jobs(["unknown"])) == []
    assert house.adapter.inspect_job("unknown") is None


def test_a_cancel_that_comes_before_the_supervisor_is_not_lost(house: House) -> None:
    (house.adapter.jobs / "early").mkdir()  # what a submit has made before it starts the supervisor
    house.adapter.cancel_job("early")
    house.submit("early", SLEEP)
    assert house.ended("early").state is JobState.CANCELLED


def test_a_submit_that_died_half_way_is_made_good_by_the_next(house: House) -> None:
    (house.adapter.jobs / "half").mkdir()
    (house.adapter.jobs / "half" / "lock").touch()
    assert list(house.adapter.find_jobs(["half"])) == []
    house.submit("half", "")
    assert house.ended("half").state is JobState.SUCCEEDED


def test_submitting_a_name_twice_runs_it_once(house: House, tmp_path: Path) -> None:
    count = f"open({str(tmp_path / 'mark')!r}, 'a').write('x')"
    assert [house.submit("twice", count), house.submit("twice", count)] == ["twice", "twice"]
    house.ended("twice")
    assert house.submit("twice", count) == "twice"
    assert house.ended("twice").state is JobState.SUCCEEDED
    assert (tmp_path / "mark").read_text() == "x"


@pytest.mark.parametrize("house", [3], indirect=True, ids=["slots-3"])
def test_never_more_jobs_run_than_there_are_slots_and_all_get_their_turn(house: House, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    work = f"import os, time\nme = {str(inside)!r} + '/' + str(os.getpid())\nopen(me, 'w').close()\ntime.sleep(0.05)\n"
    work += f"print(len(os.listdir({str(inside)!r})))\nos.remove(me)\n"
    names = [f"job-{number}" for number in range(12)]
    for number, name in enumerate(names):
        house.submit(name, work, Resources(cpus=1 + number % 3))
    for name in names:
        assert house.ended(name).state is JobState.SUCCEEDED
    seen = {name: int((house.adapter.jobs / name / "log").read_text()) for name in names}
    assert all(others <= 3 - number % 3 for number, others in enumerate(seen.values())), seen


@pytest.mark.parametrize("house", [1], indirect=True, ids=["slots-1"])
def test_two_workers_of_one_folder_share_its_slots(house: House) -> None:
    house.submit("mine", SLEEP)
    house.running("mine")
    theirs = house.another(slots=1, worker="other")
    theirs.submit_job(JobSpec("theirs", "", ("true",), {}, Resources()))
    assert [each.state for each in theirs.poll_jobs(["theirs"])] == [JobState.QUEUED]
    assert list(theirs.find_jobs(["mine"])) == []
    house.adapter.cancel_job("mine")
    until(
        lambda: [each.state for each in theirs.poll_jobs(["theirs"])] == [JobState.SUCCEEDED], "the other worker's job"
    )


@pytest.mark.parametrize("house", [1], indirect=True, ids=["slots-1"])
def test_jobs_live_on_when_their_submitter_is_killed_and_are_found_by_name(house: House, tmp_path: Path) -> None:
    first, second = marking(tmp_path / "first", "1") + "import time\ntime.sleep(1)", marking(tmp_path / "second", "2")
    submitter = f"""
import os, signal
from pathlib import Path
from batchport.backends.local import LocalAdapter, Options
from batchport.jobs import JobSpec, Resources
adapter = LocalAdapter(Options(folder={str(tmp_path / "house")!r}, slots=1))
adapter.open("w")
for name, text in (("one", {first!r}), ("two", {second!r})):
    Path({str(tmp_path)!r}, name).write_text(text)
    adapter.submit_job(JobSpec(name, "", ({sys.executable!r}, {str(tmp_path)!r} + "/" + name), {{}}, Resources()))
os.killpg(0, signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", submitter], start_new_session=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list(house.adapter.find_jobs(["one", "two", "three"])) == [("one", "one"), ("two", "two")]
    assert house.mark("second") == "2"
    assert [house.ended(name).state for name in ("one", "two")] == [JobState.SUCCEEDED] * 2


def test_a_submitter_has_no_child_left_after_a_submit(house: House) -> None:
    house.submit("child", SLEEP)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_what_a_job_leaves_running_is_killed_before_the_job_is_over(house: House, tmp_path: Path) -> None:
    daemon = "import os, time\nif not os.fork():\n    os.setsid()\n    if os.fork(): os._exit(0)\n    "
    daemon += marking(tmp_path / "mark", "os.getpid()").replace("\n", "\n    ") + "time.sleep(600)\n"
    house.submit("daemon", daemon + f"while not os.path.exists({str(tmp_path / 'mark')!r}): time.sleep(0.01)")
    assert house.ended("daemon").state is JobState.SUCCEEDED
    assert not is_alive(int(house.mark("mark")))


def test_a_job_whose_supervisor_was_killed_is_lost_and_nothing_of_it_lives(house: House, tmp_path: Path) -> None:
    fork = "import os\nos.fork() or os.setpgid(0, 0)\n"
    house.submit(
        "orphan",
        fork + marking(tmp_path / "mark-", "1").replace("mark-", "mark-{os.getpid()}").replace("'/", "f'/") + SLEEP,
    )
    until(lambda: len(list(tmp_path.glob("mark-*[0-9]"))) == 2, "two processes")
    pids = [int(mark.name.removeprefix("mark-")) for mark in tmp_path.glob("mark-*[0-9]")]
    supervisor = int(house.record("orphan")["supervisor"])
    job = int(house.record("orphan")["job"])
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: not is_alive(job), "the job's own end, though nobody looks")
    status = house.ended("orphan")
    assert (status.state, status.reason, status.exit_code) == (JobState.FAILED, Reason.NODE_LOST, None)
    assert (
        status.evidence == f"the job's supervisor, process {supervisor}, is gone and left no word: killed, or a reboot"
    )
    assert not any(map(is_alive, pids))
    house.adapter.cancel_job("orphan")
    assert house.status("orphan") == status


@pytest.mark.parametrize("house", [1], indirect=True, ids=["slots-1"])
def test_the_slot_of_a_killed_supervisor_is_free_again(house: House) -> None:
    house.submit("first", SLEEP)
    house.running("first")
    for name in ("second", "third"):
        house.submit(name, "")
    for name in ("first", "second"):
        os.kill(int(house.record(name)["supervisor"]), signal.SIGKILL)
    assert house.ended("third").state is JobState.SUCCEEDED
    assert house.ended("second").reason is Reason.NODE_LOST


@pytest.mark.parametrize("state", ["QUEUED", "RUNNING"])
def test_a_process_that_got_the_supervisors_number_later_is_not_taken_for_it(house: House, state: str) -> None:
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as stranger:
        folder = house.adapter.jobs / "old"
        folder.mkdir()
        words = f"state={state} reason= exit_code= size=1 supervisor={stranger.pid} born=1@an-earlier-boot"
        words += f" job={stranger.pid} job_born=2@an-earlier-boot" if state == "RUNNING" else ""
        (folder / "state").write_text(words + "\nwaiting")
        house.adapter.cancel_job("old")
        assert (house.status("old").state, house.status("old").reason) == (JobState.FAILED, Reason.NODE_LOST)
        assert stranger.poll() is None
        stranger.kill()


def test_without_proc_a_process_is_known_by_what_ps_says(monkeypatch: pytest.MonkeyPatch) -> None:
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: not str(path).startswith("/proc") and exists(path))
    with subprocess.Popen(["sleep", "600"]) as sleeper:
        born = _supervisor.birth(sleeper.pid)
        assert born
        assert str(time.localtime().tm_year) in born
        assert born == _supervisor.birth(sleeper.pid)
        sleeper.kill()
    assert _supervisor.birth(sleeper.pid) is None


def test_a_job_whose_folder_is_removed_is_not_reported(house: House) -> None:
    house.submit("gone", "")
    house.ended("gone")
    shutil.rmtree(house.adapter.jobs / "gone")
    assert list(house.adapter.poll_jobs(["gone"])) == []
    assert list(house.adapter.find_jobs(["gone"])) == []


def test_closing_removes_what_ended_and_nothing_that_lives(house: House) -> None:
    house.submit("ended", "")
    house.submit("lives", SLEEP)
    house.ended("ended")
    house.running("lives")
    house.adapter.close()
    assert [folder.name for folder in house.adapter.jobs.iterdir()] == ["lives"]
    assert house.status("lives").state is JobState.RUNNING
    house.adapter.cancel_job("lives")
    house.ended("lives")
    house.adapter.close()
    assert not house.adapter.jobs.exists()


def test_closing_keeps_what_ended_until_a_poll_has_told_it(house: House) -> None:
    house.submit("untold", "raise SystemExit(7)")
    until(lambda: house.record("untold")["state"] == "FAILED", "the end of untold")
    house.adapter.queue_limit = 4
    house.submit("told", "")  # which counts the queue, and is no poll
    house.ended("told")
    house.adapter.close()
    assert [folder.name for folder in house.adapter.jobs.iterdir()] == ["untold"]
    again = house.another()
    assert [status.exit_code for status in again.poll_jobs(["untold"])] == [7]
    again.close()
    assert not again.jobs.exists()


def test_opening_removes_jobs_of_all_workers_that_ended_a_week_ago(house: House) -> None:
    for name in ("old", "new"):
        house.submit(name, "")
        house.ended(name)
    house.submit("old-and-alive", SLEEP)
    house.running("old-and-alive")
    (house.adapter.jobs / "old-half").mkdir()
    for name in ("old", "old-and-alive", "old-half"):
        os.utime(house.adapter.jobs / name, (0, 0))
    house.another(worker="other").close()
    assert sorted(folder.name for folder in house.adapter.jobs.iterdir()) == ["new", "old-and-alive"]


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        (Resources(cpus=5), "5 CPUs for one job, and this backend has 4 slots"),
        (Resources(memory_mib=10**9), f"1000000000 MiB for one job, and this machine has {MEMORY_MIB} MiB"),
        (Resources(gpus=1), "1 GPUs for one job, and this backend has no GPUs"),
        (Resources(extra={"queue": "x"}), "extra={'queue': 'x'}, and this backend has no options of its own for a job"),
    ],
)
def test_resources_that_this_machine_cannot_give_are_refused(house: House, resources: Resources, words: str) -> None:
    with pytest.raises(RejectedJobError) as refused:
        house.submit("refused", "", resources)
    assert str(refused.value) == words
    assert list(house.adapter.find_jobs(["refused"])) == []


def test_a_folder_that_cannot_be_made_is_refused_when_the_worker_starts(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BackendUnusableError) as refused:
        LocalAdapter(Options(folder=str(tmp_path / "file"))).open("w")
    assert (
        str(refused.value)
        == f"no job can be kept in {tmp_path}/file: File exists. Choose another with Options(folder=...)"
    )


def test_a_folder_of_another_user_is_refused_when_the_worker_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(BackendUnusableError) as refused:
        LocalAdapter(Options(folder=str(tmp_path))).open("w")
    expected = f"{tmp_path} belongs to another user: choose another folder with Options(folder=...)"
    assert str(refused.value) == expected


def test_the_folder_is_a_users_own_unless_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert LocalAdapter(Options()).folder == tmp_path / f"batchport-{os.getuid()}"


def test_the_folder_is_for_its_owner_alone(house: House) -> None:
    assert house.adapter.folder.stat().st_mode & 0o777 == 0o700


def test_a_check_says_what_to_do_where_something_is_missing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(check.ok and not check.advice for check in house.adapter.check())
    monkeypatch.setenv("PATH", str(house.folder))
    (bad,) = [check for check in house.adapter.check() if not check.ok]
    assert (bad.what, bad.advice) == ("bash, which runs the jobs", "install bash, or put it on PATH")


@pytest.mark.parametrize("house", [1], indirect=True, ids=["slots-1"])
def test_a_hundred_queued_jobs_use_no_cpu_to_speak_of(house: House) -> None:
    house.submit("first", SLEEP)
    house.running("first")
    names = [f"queued-{number}" for number in range(100)]
    for name in names:
        house.submit(name, SLEEP)
    supervisors = [int(house.record(name)["supervisor"]) for name in ("first", *names)]
    before = sum(map(cpu_seconds, supervisors))
    time.sleep(1)  # what is measured is a second in which nothing happens
    used = sum(map(cpu_seconds, supervisors)) - before
    house.adapter.cancel_jobs([*names, "first"])
    for name in ("first", *names):
        house.ended(name)
    assert used < 0.1


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
