"""The simulator does and prints what a real Slurm does: each scenario is run on both, and what they say is compared.

All scenarios of one cluster run at the same time, and both clusters do. Ids, times, folders and names of nodes differ
and are replaced by words. The simulator is set up as the real one says that it is.
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.lab import labs

from batchport.testing.slurm import SlurmSimulator
from batchport.testing.slurm.job_ids import array_indexes

LIVING = {"PENDING", "RUNNING", "COMPLETING"}
LONGEST_S = 90
RUN = f"{time.time():.0f}"
"""In names that are looked up, since a real cluster remembers those of earlier runs."""
QUEUE = [
    "JobArrayID",
    "ArrayJobID",
    "ArrayTaskID",
    "State",
    "StateCompact",
    "Name",
    "Reason",
    "ReasonList",
    "NodeList",
    "exit_code",
    "NumCPUs",
    "Partition",
    "TimeLimit",
    "UserName",
]
ACCOUNTED = [
    "JobID",
    "State",
    "JobName",
    "ExitCode",
    "DerivedExitCode",
    "NodeList",
    "Reason",
    "Partition",
    "Timelimit",
    "User",
]
STEPS = ["JobID", "State", "JobName", "ExitCode"]
SHOWN = {
    "JobState",
    "Reason",
    "ExitCode",
    "Requeue",
    "Restarts",
    "ArrayTaskId",
    "TimeLimit",
    "StdOut",
    "WorkDir",
    "JobName",
}

Rows = list[dict[str, str]]
Seen = dict[str, object]


class Answer(NamedTuple):
    """What a command said."""

    code: int
    out: str
    err: str


class Cluster:
    """One of the two clusters, with what all scenarios need of it."""

    def __init__(self, env: dict[str, str], folder: Path) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        self.env, self.folder = inherited | env, folder
        self.config = dict(re.findall(r"^(\S+)\s+= (.*)$", self.run("scontrol", "show", "config").out, re.MULTILINE))
        self.accounting = not self.config["AccountingStorageType"].endswith("none")
        self.enforced = self.config["AccountingStorageEnforce"] != "none"
        self.cgroups = "cgroup" in self.config.get("TaskPlugin", "cgroup")
        self.began = time.strftime("%Y-%m-%dT%H:%M:%S")
        self.lock = threading.Lock()
        self.listed_at = 0.0
        self.listed: dict[str, set[str]] = {}
        self.accounts: list[tuple[str, str, str]] = []

    def run(self, *argv: str, stdin: str = "", folder: Path | None = None, env: dict[str, str] | None = None) -> Answer:
        done = subprocess.run(
            argv,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            env=self.env | (env or {}),
            cwd=folder or self.folder,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    def states(self, job: str) -> set[str]:
        """Return all states of this job that squeue and sacct tell; all scenarios share one look at them."""
        with self.lock:
            if time.monotonic() > self.listed_at + 0.3:
                out = self.run("squeue", "--me", "-h", "-r", "-t", "all", "-o", "%F %T").out
                if self.accounting:
                    accounts = self.run("sacct", "-X", "-n", "-P", "-S", self.began, "-o", "JobID,State,JobName").out
                    self.accounts = re.findall(r"^(\d+)\S*\|(\S+).*\|(.*)$", accounts, re.MULTILINE)
                    out += "".join(f"{number} {state}\n" for number, state, _ in self.accounts)
                self.listed = {}
                for line in out.splitlines():
                    number, state = line.split()
                    self.listed.setdefault(number, set()).add(state)
                self.listed_at = time.monotonic()
            return self.listed.get(job, set())


class Scenario:
    """What one scenario does on one cluster, and sees there."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.name = cluster, name
        self.folder = cluster.folder / name
        self.folder.mkdir()
        self.jobs: list[str] = []

    def sbatch(self, *options: str, script: str = "true", **env: str) -> Answer:
        """Submit as an adapter does."""
        argv = ("sbatch", "--parsable", f"--job-name={self.name}", *options)
        return self.cluster.run(*argv, stdin=f"#!/bin/bash\n{script}\n", folder=self.folder, env=env)

    def submit(self, *options: str, script: str = "true", **env: str) -> str:
        """Submit a job, and let it go on once accounting knows of its start.

        Of what starts and ends between two messages to it, slurmdbd never learns the name, nor that it is an element.
        """
        gate = "until [ -e known-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID} ]; do sleep 0.1; done"
        log = "log-%a" if any(each.startswith("--array") for each in options) else "log"
        answer = self.sbatch(f"--output={log}", *options, script=f"{gate}\n{script}", **env)
        assert answer.code == 0, answer
        job = answer.out.strip()
        self.jobs.append(job)
        size = 1
        for each in options:
            if each.startswith("--array=") and "%" not in each:
                size = len(array_indexes(each.removeprefix("--array="))[0])
        name = next((each.partition("=")[2] for each in options if each.startswith("--job-name")), self.name)

        def is_known() -> bool:
            if "--hold" in options:  # not listed until it is eligible, but by its id
                return name in self.cluster.run("sacct", "-X", "-n", "-P", "-j", job, "-o", "JobName").out
            self.cluster.states(job)
            return self.cluster.accounts.count((job, "RUNNING", name)) == size

        waits = {"--partition=short", "--ntasks=99", "--output=/nonexistent/folder/log"}.intersection(options)
        if self.cluster.accounting and not waits and not any(each.startswith("--dependency") for each in options):
            self.until(is_known, f"job {job} in accounting")
        (self.cluster.folder / self.name / f"known-{job}").touch()
        return job

    def run(self, *argv: str) -> Answer:
        code, out, err = self.cluster.run(*argv, folder=self.folder)
        return Answer(code, self.without_ids(self.plain(out)), self.without_ids(self.plain(err)))

    def until(self, holds: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + LONGEST_S
        while not holds():
            assert time.monotonic() < deadline, f"{self.name}: waited {LONGEST_S} s for {what}"
            time.sleep(0.2)

    def until_state(self, job: str, *states: str) -> None:
        self.until(lambda: self.queue_states(job) & set(states), f"{states} of {job}")

    def queue_states(self, job: str) -> set[str]:
        out = self.cluster.run("squeue", "--me", "-h", "-r", "-t", "all", "-j", job, "-o", "%T").out
        return set(out.split())

    def reasons_to_wait(self, job: str) -> set[str]:
        return set(self.cluster.run("squeue", "--me", "-h", "-t", "PENDING", "-j", job, "-o", "%r").out.split())

    def until_file(self, name: str) -> None:
        self.until((self.folder / name).exists, f"the file {name}")

    def until_over(self, job: str) -> None:
        def is_over() -> bool:
            states = self.cluster.states(job)
            return bool(states) and not states & LIVING

        self.until(is_over, f"the end of {job}")

    def seen(self, job: str) -> Seen:
        """Return all that the commands tell of a job that is over."""
        self.until_over(job)
        return {
            "squeue": self.queue("-j", job, "--array"),
            "squeue without --array": self.queue("-j", job),
            "sacct": self.accounts("-j", job),
            "sacct with steps": self.steps("-j", job),
            "scontrol": self.control(job),
            "output": self.files(),
        }

    def queue(self, *options: str) -> Rows:
        form = ",".join(f"{column}:|" for column in QUEUE)
        out = self.cluster.run("squeue", "--me", "--states=all", f"--Format={form}", "--noheader", *options).out
        return self.rows(QUEUE, out.replace("|\n", "\n"))

    def accounts(self, *options: str) -> Rows:
        return self._accounts(ACCOUNTED, "-X", *options)

    def steps(self, *options: str) -> Rows:
        return self._accounts(STEPS, *options)

    def _accounts(self, columns: list[str], *options: str) -> Rows:
        if not self.cluster.accounting:
            return []
        argv = ("sacct", "--parsable2", "-S", self.cluster.began, f"--format={','.join(columns)}", *options)
        answer = self.cluster.run(*argv)
        head, _, rest = answer.out.partition("\n")
        assert head.split("|") == columns, answer
        return self.rows(columns, rest)

    def control(self, job: str) -> Rows:
        out = self.plain(self.cluster.run("scontrol", "-o", "show", "job", job).out)
        found = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in out.splitlines()]
        return self.in_order([{name: each for name, each in row.items() if name in SHOWN} for row in found])

    def rows(self, columns: list[str], out: str) -> Rows:
        rows = [dict(zip(columns, self.plain(row).split("|"), strict=True)) for row in out.splitlines()]
        for row in rows:
            for name in ("JobArrayID", "ArrayJobID", "JobID"):
                if name in row:
                    row[name] = re.sub(r"^\d+", "ID", row[name])
            if "ExitCode" in row:  # accounting is late with which elements still wait
                row["JobID"] = re.sub(r"\[.*\]", "[SOME]", row["JobID"])
        return self.in_order(rows)

    @staticmethod
    def in_order(rows: Rows) -> Rows:
        names = ("JobArrayID", "JobID", "ArrayTaskId", "Name", "JobName")
        return sorted(rows, key=lambda row: [row.get(name, "") for name in names])

    def files(self) -> dict[str, str]:
        """Return what the jobs wrote."""
        written = {path.name: path for path in sorted(self.folder.iterdir()) if not path.name.startswith("known-")}
        return {self.without_ids(name): self.plain(path.read_text()) for name, path in written.items()}

    def without_ids(self, words: str) -> str:
        for job in self.jobs:
            words = re.sub(rf"(?<![\d.]){job}(?!\d)", "ID", words)
        return words

    def plain(self, words: str) -> str:
        """Replace what differs from cluster to cluster and from run to run, but for ids."""
        words = words.replace(str(self.cluster.folder), "FOLDER").replace(RUN, "RUN")
        words = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", "TIME", words)
        words = re.sub(r"\bn\d+\b", "NODE", words)
        words = re.sub(r"\S+/slurm_script: line (\d+): +\d+ ", r"SCRIPT: line \1: PROCESS ", words)
        return re.sub(r"\b(StepId=|JOB )\d+", r"\1ID", words)


def success(on: Scenario) -> Seen:
    return on.seen(on.submit(script="echo said; echo wrong >&2"))


def exit_3(on: Scenario) -> Seen:
    return on.seen(on.submit(script="exit 3"))


def exit_137_and_200(on: Scenario) -> Seen:
    first, second = on.submit(script="exit 137"), on.submit(script="exit 200")
    return {"137": on.seen(first), "200": on.seen(second)}


def kills_itself(on: Scenario) -> Seen:
    return on.seen(on.submit(script="kill -9 $$"))


def ends_itself_by_sigterm(on: Scenario) -> Seen:
    return on.seen(on.submit(script="kill -TERM $$"))


def a_child_is_killed(on: Scenario) -> Seen:
    return on.seen(on.submit(script="python3 -c 'import os; os.kill(os.getpid(), 9)'"))


def cancelled_while_it_runs(on: Scenario) -> Seen:
    job = on.submit(script="touch runs; sleep 300")
    on.until_file("runs")
    return {"scancel": on.run("scancel", job)} | on.seen(job)


def cancelled_and_deaf(on: Scenario) -> Seen:
    job = on.submit(script="trap '' TERM; touch runs; while true; do sleep 0.2; done")
    on.until_file("runs")
    return {"scancel": on.run("scancel", job), "at once": on.queue("-j", job)} | on.seen(job)


def cancelled_and_with_a_last_word(on: Scenario) -> Seen:
    job = on.submit(script="trap 'echo last word; exit 7' TERM; sleep 300 & touch runs; wait")
    on.until_file("runs")
    return {"scancel": on.run("scancel", job)} | on.seen(job)


def held_and_cancelled(on: Scenario) -> Seen:
    job = on.submit("--hold")
    before = {"held": on.queue("-j", job), "scontrol, held": on.control(job), "scancel": on.run("scancel", job)}
    on.until_over(job)
    return {**before, "squeue": on.queue("-j", job), "scontrol": on.control(job), "again": on.run("scancel", job)}


def held_and_released(on: Scenario) -> Seen:
    job = on.submit("--hold", script="echo released")
    before = on.queue("-j", job)
    return {"held": before, "release": on.run("scontrol", "release", job)} | on.seen(job)


def held_by_an_administrator(on: Scenario) -> Seen:
    job = on.submit("--hold", script="echo released")
    on.run("scontrol", "release", job)
    # What accounting noted as the reason depends on whether it heard of the hold before its end.
    first = on.seen(job) | {"sacct": [row | {"Reason": ""} for row in on.accounts("-j", job)]}
    job = on.submit("--hold")
    held = on.run("scontrol", "hold", job)
    seen = on.queue("-j", job)
    on.run("scancel", job)
    return {"first": first, "hold": held, "held": seen}


def an_array_of_five_that_end_differently(on: Scenario) -> Seen:
    ends = "case $SLURM_ARRAY_TASK_ID in 1) exit 3;; 2) kill -9 $$;; 3) kill -TERM $$;; 4) exit 200;; esac"
    return on.seen(on.submit("--array=0-4", script=ends))


def one_element_is_cancelled_while_it_runs(on: Scenario) -> Seen:
    job = on.submit(
        "--array=0-2", script="touch runs-$SLURM_ARRAY_TASK_ID; [ $SLURM_ARRAY_TASK_ID = 1 ] && sleep 300; true"
    )
    on.until_file("runs-1")
    return {"scancel": on.run("scancel", f"{job}_1")} | on.seen(job)


def elements_that_wait(on: Scenario) -> Seen:
    job = on.submit("--array=0-3%1", script="touch runs-$SLURM_ARRAY_TASK_ID; sleep 300")
    on.until_file("runs-0")
    on.until(lambda: any(row["Reason"] == "JobArrayTaskLimit" for row in on.queue("-j", job)), "the limit")
    waiting = {"with --array": on.queue("-j", job, "--array"), "without": on.queue("-j", job)}
    one = {"one": on.queue("-j", f"{job}_2"), "of four none": on.queue("-j", f"{job}_9")}
    # A waiting element that is cancelled leaves no trace, neither here nor in accounting.
    cancelled = {"scancel": on.run("scancel", f"{job}_2"), "after": on.queue("-j", job, "--array")}
    return {**waiting, **one, **cancelled, "all": on.run("scancel", job)} | on.seen(job)


def a_whole_array_that_waits_is_cancelled(on: Scenario) -> Seen:
    job = on.submit("--array=0-2", "--hold")
    waiting = on.queue("-j", job, "--array")
    return {"waiting": waiting, "scancel": on.run("scancel", job)} | _without_reason(on.seen(job))


def every_element_that_waits_is_cancelled(on: Scenario) -> Seen:
    job = on.submit("--array=0-2", "--hold")
    answer = on.run("scancel", f"{job}_0", f"{job}_1", f"{job}_2")
    on.until_over(job)
    return {"scancel": answer, "squeue": on.queue("-j", job, "--array"), "without --array": on.queue("-j", job)}


def _without_reason(seen: Seen) -> Seen:
    return {name: each for name, each in seen.items() if not name.startswith("sacct")}


def over_its_time_limit(on: Scenario) -> Seen:
    job = on.submit("--time=1", script="touch runs; sleep 300")
    on.until_file("runs")
    # The real one looks every half minute at limits of whole minutes; the simulator has minutes of two seconds.
    on.cluster.run(
        "scontrol", "update", f"jobid={job}", f"EndTime={time.strftime('%FT%T', time.localtime(time.time() + 1))}"
    )
    return _without_limit(on.seen(job))


def _without_limit(seen: Seen) -> Seen:
    def cut(rows: Rows) -> Rows:
        return [{name: each for name, each in row.items() if name.lower() != "timelimit"} for row in rows]

    return {name: cut(each) if isinstance(each, list) else each for name, each in seen.items()}


def out_of_memory(on: Scenario) -> Seen:
    if not on.cluster.cgroups:
        return {}
    hungry = "python3 -c 'x = b\"x\" * 300_000_000; import time; time.sleep(30)'"
    return on.seen(on.submit("--mem=100M", script=f"{hungry} 2>/dev/null >&2; exit 0"))


def a_partition_that_does_not_exist(on: Scenario) -> Seen:
    return {"sbatch": on.sbatch("--partition=nope"), "test": on.sbatch("--partition=nope", "--test-only")}


def an_account_that_does_not_exist(on: Scenario) -> Seen:
    if on.cluster.enforced:
        return {"sbatch": on.sbatch("--account=nope"), "test": on.sbatch("--account=nope", "--test-only")}
    return on.seen(on.submit("--account=nope"))


def a_qos_that_does_not_exist(on: Scenario) -> Seen:
    if on.cluster.enforced:
        return {"sbatch": on.sbatch("--qos=nope"), "test": on.sbatch("--qos=nope", "--test-only")}
    return on.seen(on.submit("--qos=nope"))


def what_no_node_has(on: Scenario) -> Seen:
    return {
        "feature": on.sbatch("--constraint=nope"),
        "memory": on.sbatch("--mem=999G"),
        "cpus of a node": on.sbatch("--cpus-per-task=5"),
        "gpu": on.sbatch("--gres=gpu:1"),
    }


def longer_than_its_partition_allows(on: Scenario) -> Seen:
    job = on.submit("--partition=short", "--time=5")
    on.until(lambda: on.queue("-j", job)[0]["Reason"] == "PartitionTimeLimit", "the reason")
    seen = {"squeue": on.queue("-j", job), "scontrol": on.control(job)}
    if on.cluster.accounting:
        on.until(lambda: on.accounts("-j", job), "the job in sacct")
        # Slurm may tell accounting the reason of a moment, PartitionConfig, and never correct it.
        seen["sacct"] = [{**row, "Reason": ""} for row in on.accounts("-j", job)]
    return {**seen, "scancel": on.run("scancel", job)}


def more_cpus_than_there_are(on: Scenario) -> Seen:
    job = on.submit("--ntasks=99")
    on.until(lambda: on.queue("-j", job)[0]["Reason"] != "None", "a reason")
    seen = on.queue("-j", job)
    return {"squeue": seen, "scancel": on.run("scancel", job)}


def a_dependency_that_fails(on: Scenario) -> Seen:
    first = on.submit(script="exit 1")
    second = on.submit(f"--dependency=afterok:{first}")
    on.until(lambda: on.queue("-j", second)[0]["Reason"] == "DependencyNeverSatisfied", "the reason")
    seen = on.queue("-j", second)
    return {"squeue": seen, "scancel": on.run("scancel", second)}


def found_by_name(on: Scenario) -> Seen:
    over = on.submit(f"--job-name=by-name-{RUN}")
    array = on.submit(
        "--array=0-1", f"--job-name=by-name-too-{RUN}", script="touch runs-$SLURM_ARRAY_TASK_ID; sleep 300"
    )
    on.until_file("runs-0")
    on.until_file("runs-1")
    on.submit("--hold", f"--job-name=by-name-held-{RUN}")
    on.until_over(over)
    names = f"--name=by-name-{RUN},by-name-too-{RUN},by-name-held-{RUN},nobody"
    seen: Seen = {
        "all": on.queue("--array", names),
        "sacct": on.accounts(names),
        "sacct, none": on.accounts("--name=nobody"),
    }
    seen |= {"living": sorted(on.run("squeue", "--me", "-h", "-r", names, "-o", "%j|%F|%i|%T").out.splitlines())}
    seen |= {"none": on.run("squeue", "--me", "-h", "-t", "all", "--name=nobody")}
    cancelled = [on.run("scancel", f"--name=by-name-{name}-{RUN}") for name in ("too", "held", "nobody")]
    on.until_over(array)
    return {**seen, "scancel": cancelled, "after": on.queue("--array", names)}


def ids_that_are_unknown(on: Scenario) -> Seen:
    job = on.submit()
    on.until_over(job)
    commands = (
        "squeue -j 9999999",
        "squeue -h -t all -o %i -j {job},9999999",
        "squeue -h -t all -o %i -j {job}_7",
        "squeue -j nonsense",
        "scancel 9999999",
        "scancel 9999999_3",
        "scancel nonsense",
        "scancel",
        "scancel {job}",
        "scontrol show job 9999999",
        "scontrol show job {job}_7",
        "scontrol hold 9999999",
        "scontrol requeue 9999999",
    )
    accounting = ("sacct -n -P -X -j 9999999", "sacct -n -P -X -j nonsense", "sacct --format=nonsense")
    return {each: on.run(*each.format(job=job).split()) for each in commands + accounting * on.cluster.accounting}


def accounting_that_is_off(on: Scenario) -> Seen:
    return {} if on.cluster.accounting else {"sacct": on.run("sacct", "-X", "-n", "-P", "-j", "1")}


def requeued_by_an_administrator(on: Scenario) -> Seen:
    script = "echo x >> runs; [ $(wc -l < runs) -gt 1 ] && exit 4; touch first; sleep 300"
    job = on.submit("--requeue", script=script)
    on.until_file("first")
    answer = on.run("scontrol", "requeue", job)
    on.until_state(job, "PENDING")
    on.until(lambda: on.reasons_to_wait(job) == {"BeginTime"}, f"the reason why {job} waits")
    return {"requeue": answer, "waiting": on.queue("-j", job)} | on.seen(job)


def requeued_and_held(on: Scenario) -> Seen:
    job = on.submit(script="touch runs; sleep 300")
    on.until_file("runs")
    answer = on.run("scontrol", "requeuehold", job)
    on.until_state(job, "PENDING")
    return {"requeuehold": answer, "squeue": on.queue("-j", job), "scancel": on.run("scancel", job)}


def output_files(on: Scenario) -> Seen:
    jobs = [
        on.submit("--output=a-%x-%j-%A-%a.log", script="echo one"),
        on.submit("--output=b-%x-%A-%3a-%%.log", "--array=3-5:2", script="echo element $SLURM_ARRAY_TASK_ID"),
        on.submit("--output=none", script="echo lost"),
        on.submit("--output=c.log", "--error=c.err", script="echo out; echo err >&2"),
    ]
    for job in jobs:
        on.until_over(job)
    return {"files": on.files()}


def an_output_that_cannot_be_opened(on: Scenario) -> Seen:
    return on.seen(on.submit("--output=/nonexistent/folder/log"))


def an_interpreter_and_a_folder_that_are_not_there(on: Scenario) -> Seen:
    script = "#!/nonexistent/bash\ntrue\n"
    argv = ("sbatch", "--parsable", "--job-name=interpreter", "--output=log-interpreter")
    on.jobs.append(on.cluster.run(*argv, stdin=script, folder=on.folder).out.strip())
    on.until_over(on.jobs[0])
    return {"squeue": on.queue("-j", on.jobs[0]), "log": on.files()}


def processes_that_a_script_leaves(on: Scenario) -> Seen:
    if not on.cluster.cgroups:
        return {}  # proctrack/linuxproc does not find what left the session
    job = on.submit(script="setsid sleep 301 & echo $! > pid; setsid sleep 301 & exit 0")
    on.until_over(job)
    pid = (on.folder / "pid").read_text().strip()
    on.until(lambda: not Path(f"/proc/{pid}/exe").exists(), "the end of what it left")
    return {"squeue": on.queue("-j", job)}


def environment(on: Scenario) -> Seen:
    # TASK_PID, host and address are each cluster's own; so is how it names itself.
    drop = "SLURM_TASK_PID|SLURM_SUBMIT_HOST|SLURM_WORKING_CLUSTER|SLURM_CLUSTER_NAME|SLURM_CONF|SLURM_JOB_ACCOUNT"
    script = f"env | grep -E '^(SLURM|FOO|MORE)' | grep -vE '^({drop}|SLURM_JOB_QOS)=' | sort; pwd"
    jobs = [
        on.submit("--export=ALL", script=script, FOO="bar"),
        on.submit(
            "--output=array-%a",
            "--export=ALL,MORE=1",
            "--array=0-1",
            "--cpus-per-task=2",
            "--ntasks=1",
            "--mem=70M",
            script=script,
        ),
        on.submit("--output=bare", "--export=NONE", script=script, FOO="bar"),
        on.submit("--output=nil", "--export=NIL", script=script, FOO="bar"),
        on.submit("--output=inherited", script=f"{script}; echo $0 | sed 's|.*/||'", SLURM_ARRAY_TASK_ID="7"),
    ]
    for job in jobs:
        on.until_over(job)
    said = on.files()
    # Which element keeps the array's own id is no promise.
    return {"files": {name: re.sub(r"(SLURM_(ARRAY_)?JOB_?ID)=\S+", r"\1=ID", each) for name, each in said.items()}}


def options_that_are_wrong(on: Scenario) -> Seen:
    empty = on.cluster.run("sbatch", "--parsable")
    return {
        "time": on.sbatch("--time=abc"),
        "array": on.sbatch("--array=x"),
        "too large an array": on.sbatch(f"--array=0-{on.cluster.config['MaxArraySize']}"),
        "option": on.sbatch("--nonsense"),
        "no script": empty,
        "no interpreter": on.cluster.run("sbatch", stdin="true\n"),
        "no file": on.cluster.run("sbatch", "/nonexistent"),
        "states": on.run("squeue", "--states=nonsense"),
        "argument": on.run("squeue", "--format"),
        "since": on.run("sacct", "-S", "yesterday") if on.cluster.accounting else None,
    }


def columns_and_widths(on: Scenario) -> Seen:
    job = on.submit("--hold", "--job-name=a-name-of-some-thirty-characters")
    forms = ("%.10j|%10T|%.2t|%R", "%i %F %K %A %P %C %D %u %l %M %L", "%Z")
    long = ("Name,State", "Name:5,State:3", "Name:.40|,State:3", "Name: |,State:|,exit_code: ,NodeList:,Reason:")
    seen: Seen = {form: on.run("squeue", "-h", "-o", form, "-j", job) for form in forms}
    seen |= {form: on.run("squeue", "-h", "-O", form, "-j", job) for form in long}
    seen |= {"head": on.run("squeue", "-o", "%.10j|%10T|%.2t|%R", "-j", job), "usual": on.run("squeue", "-j", job).code}
    return seen | {"scancel": on.run("scancel", job)}


def sbatch_in_its_own_words(on: Scenario) -> Seen:
    argv = ("sbatch", "--output=/dev/null", "--wrap=true")
    answer = on.cluster.run(*argv)
    on.jobs.append(answer.out.split()[-1])
    test = on.cluster.run("sbatch", "--test-only", "--wrap=true")
    words = re.sub(r"\d+ to start at \S+", "ID to start at TIME", test.err)
    return {
        "plain": on.without_ids(answer.out),
        "test": (test.code, test.out, on.plain(words)),
        "ping": on.run("scontrol", "ping").code,
    }


def version(on: Scenario) -> Seen:
    return {each: on.run(each, "--version").code for each in ("sbatch", "squeue", "sacct", "scontrol")}


SCENARIOS: dict[str, Callable[[Scenario], Seen]] = {
    each.__name__: each
    for each in (
        success,
        exit_3,
        exit_137_and_200,
        kills_itself,
        ends_itself_by_sigterm,
        a_child_is_killed,
        cancelled_while_it_runs,
        cancelled_and_deaf,
        cancelled_and_with_a_last_word,
        held_and_cancelled,
        held_and_released,
        held_by_an_administrator,
        an_array_of_five_that_end_differently,
        one_element_is_cancelled_while_it_runs,
        elements_that_wait,
        a_whole_array_that_waits_is_cancelled,
        every_element_that_waits_is_cancelled,
        over_its_time_limit,
        out_of_memory,
        a_partition_that_does_not_exist,
        an_account_that_does_not_exist,
        a_qos_that_does_not_exist,
        what_no_node_has,
        longer_than_its_partition_allows,
        more_cpus_than_there_are,
        a_dependency_that_fails,
        found_by_name,
        ids_that_are_unknown,
        accounting_that_is_off,
        requeued_by_an_administrator,
        requeued_and_held,
        output_files,
        an_output_that_cannot_be_opened,
        an_interpreter_and_a_folder_that_are_not_there,
        processes_that_a_script_leaves,
        environment,
        options_that_are_wrong,
        columns_and_widths,
        sbatch_in_its_own_words,
        version,
    )
}


def all_seen(cluster: Cluster, names: Collection[str]) -> dict[str, Seen]:
    """Run scenarios at the same time; that one could not be played to its end is seen too."""

    def seen(name: str) -> Seen:
        try:
            return SCENARIOS[name](Scenario(cluster, name))
        except Exception as error:  # noqa: BLE001 - told with all others' differences
            return {f"failed in {cluster.folder.name}": repr(error)}

    with ThreadPoolExecutor(len(names)) as pool:
        return dict(zip(names, pool.map(seen, names), strict=True))


def alike(real: Cluster, folder: Path) -> SlurmSimulator:
    """Make a simulator that is set up as the real cluster says that it is."""
    nodes = real.run("sinfo", "-h", "-N", "-o", "%N %c %m").out.splitlines()
    parts = dict(
        re.findall(r"PartitionName=(\S+).*?MaxTime=(\S+)", real.run("scontrol", "-o", "show", "partition").out)
    )
    limits = {"UNLIMITED": None, "00:02:00": 2}
    return SlurmSimulator(
        folder,
        nodes=len({line.split()[0] for line in nodes}),
        cpus=int(nodes[0].split()[1]),
        memory_mib=int(nodes[0].split()[2]),
        partitions={name: limits[longest] for name, longest in parts.items()},
        minute_s=2,
        accounting=real.accounting,
        accounts=["root"] if real.enforced else None,
        qos={} if real.enforced else None,
        first_job_id=7_000_001,
        max_array_size=int(real.config["MaxArraySize"]),
        kill_wait_s=int(real.config["KillWait"].split()[0]),
        requeue_wait_s=8,  # long enough to be seen waiting
    )


def differences(simulated: object, real: object, where: str) -> Iterator[str]:
    """Yield each place at which what was seen differs, and both words."""
    if isinstance(simulated, dict) and isinstance(real, dict) and simulated.keys() == real.keys():
        for name in real:
            yield from differences(simulated[name], real[name], f"{where}/{name}")
    elif isinstance(simulated, list) and isinstance(real, list) and len(simulated) == len(real):
        for number, pair in enumerate(zip(simulated, real, strict=True)):
            yield from differences(*pair, f"{where}/{number}")
    elif simulated != real:
        yield f"{where}: simulated {simulated!r}, real {real!r}"


@pytest.mark.timeout(300)
def test_the_simulator_and_slurm_say_the_same(tmp_path: Path) -> None:
    # One test for all scenarios, since they run at the same time; a difference begins with its scenario's name. What
    # differs is played once more: on a busy machine Slurm may be caught between two words.
    names, told = list(SCENARIOS), ""
    for turn in ("once", "again"):
        folders = [tmp_path / turn / name for name in ("real", "simulated", "slurm")]
        for folder in folders:
            folder.mkdir(parents=True)
        real = Cluster({"SLURM_CONF": labs.slurm()["SLURM_CONF"]}, folders[0])
        with alike(real, folders[2]) as slurm, ThreadPoolExecutor(2) as pool:
            simulated = Cluster(slurm.env, folders[1])
            simulated.cgroups = real.cgroups
            there, here = pool.map(all_seen, (real, simulated), (names, names))
        told = "\n".join(differences(here, there, ""))
        names = [name for name in names if f"/{name}/" in told or here[name].keys() != there[name].keys()]
        if not names:
            break
        print(told)
    assert told == ""


def test_a_difference_is_told_with_its_place_and_both_words() -> None:
    told = differences({"exit": [{"State": "FAILED", "Name": "x"}]}, {"exit": [{"State": "TIMEOUT", "Name": "x"}]}, "")
    assert list(told) == ["/exit/0/State: simulated 'FAILED', real 'TIMEOUT'"]
