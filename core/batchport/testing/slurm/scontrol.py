"""scontrol: shows the cluster and changes it (https://slurm.schedmd.com/scontrol.html)."""

# ruff: noqa: T201 - a command prints

from __future__ import annotations

import os
import pwd
import sys
import time

from .administration import fail_node, hold, release, requeue
from .arguments import VERSION, controller_is_down, open_state, parse
from .job import Job
from .job_ids import job_id
from .state import State
from .words import duration, file_name, timestamp

__all__ = ["main"]

UNKNOWN = "Invalid job id specified"


def main(arguments: list[str]) -> int:
    """Show the cluster, or change it."""
    options, words = parse("scontrol", arguments, "o=oneliner a=all Q=quiet d=details", "", code=1)
    verb, rest = (words or [""])[0], words[1:]
    if verb == "version":
        print(VERSION)
        return 0
    state = open_state()
    if verb == "ping":
        return _ping(state)
    if verb == "show" and rest:
        return _show(state, rest[0], rest[1:], one="oneliner" in options)
    if verb in {"hold", "uhold", "release", "requeue", "requeuehold"} and rest:
        return _change(state, verb, rest)
    if verb == "update":
        return _update(state, rest)
    print(f"invalid keyword: {verb}", file=sys.stderr)
    return 1


def _show(state: State, what: str, rest: list[str], *, one: bool) -> int:
    whats = {"config": "ctl_conf", "job": "jobs", "jobs": "jobs", "partition": "partitions", "partitions": "partitions"}
    if what not in whats:
        print(f"invalid entity:{what} for keyword:show", file=sys.stderr)
        return 1
    if controller_is_down(state, f"slurm_load_{whats[what]} error"):
        return 1
    if what == "config":
        return _show_config(state)
    return _show_jobs(state, rest, one=one) if whats[what] == "jobs" else _show_partitions(state, rest)


def _ping(state: State) -> int:
    down = state.closed or state.faults.get("controller_down")
    print(f"Slurmctld(primary) at {os.uname().nodename} is {'DOWN' if down else 'UP'}")
    if down:
        print(f"{'*' * 41}\n** RESTORE SLURMCTLD DAEMON TO SERVICE **\n{'*' * 41}")
    return int(bool(down))


def _show_config(state: State) -> int:
    settings = state.settings
    enforced = settings["accounts"] is not None or settings["qos"] is not None
    lines = {
        "AccountingStorageEnforce": "associations,limits,qos" if enforced else "none",
        "AccountingStorageType": f"accounting_storage/{'slurmdbd' if settings['accounting'] else 'none'}",
        "ClusterName": "simulated",
        "EnforcePartLimits": "NO",
        "JobRequeue": 1,
        "KillWait": f"{settings['kill_wait_s']:g} sec",
        "MaxArraySize": settings["max_array_size"],
        "MaxJobCount": 10000,
        "MinJobAge": f"{settings['min_job_age_s']:g} sec",
        "NEXT_JOB_ID": state.next_id,
        "SlurmctldHost[0]": os.uname().nodename,
        "SLURM_VERSION": VERSION.split()[1],
    }
    print(f"Configuration data as of {timestamp(time.time())}")
    for name, value in lines.items():
        print(f"{name:<23} = {value}")
    print(f"\nSlurmctld(primary) at {os.uname().nodename} is UP")
    return 0


def _show_partitions(state: State, rest: list[str]) -> int:
    settings = state.settings
    if rest and rest[0] not in settings["partitions"]:
        print(f"Partition {rest[0]} not found", file=sys.stderr)
        return 1
    for number, (name, longest) in enumerate(settings["partitions"].items()):
        if name in (rest or [name]):
            most = "UNLIMITED" if longest is None else duration(longest * 60, full=True)
            print(f"PartitionName={name}\n   Default={'NO' if number else 'YES'} MaxTime={most}\n   State=UP\n")
    return 0


def _show_jobs(state: State, rest: list[str], *, one: bool) -> int:
    jobs = list(state.known())
    if rest:
        try:
            number, indexes = job_id(rest[0])
        except ValueError:
            print(UNKNOWN, file=sys.stderr)
            return 1
        if not state.named(number):
            print(f"slurm_load_jobs error: {UNKNOWN}", file=sys.stderr)
            return 1
        jobs = state.named(number, indexes)
        if not jobs:
            print(f"Job {rest[0]} not found")
            return 1
    for job in jobs:
        lines = _lines(job)
        print(" ".join(lines) if one else "\n   ".join(lines) + "\n   \n")
    return 0


def _lines(job: Job) -> list[str]:
    user, uid, gid = pwd.getpwuid(os.getuid()).pw_name, os.getuid(), os.getgid()
    array = "" if job.array is None else f"ArrayJobId={job.array} "
    array += "" if job.waiting is None and job.index is None else f"ArrayTaskId={job.task.strip('[]')} "
    out = os.path.join(job.workdir, file_name(job.out, job))  # noqa: PTH118 - pathlib takes long to import
    err = os.path.join(job.workdir, file_name(job.err, job)) if job.err else out  # noqa: PTH118
    limit = "UNLIMITED" if job.minutes is None else duration(job.minutes * 60, full=True)
    times = (
        f"StartTime={timestamp(job.start or job.begin or job.end, 'Unknown')} EndTime={timestamp(job.end, 'Unknown')}"
    )
    state = job.queue_state if job.state == "PENDING" else job.state
    return [
        f"JobId={job.id} {array}JobName={job.name}",
        f"UserId={user}({uid}) GroupId={user}({gid}) MCS_label=N/A",
        f"Priority=1 Nice=0 Account={job.account} QOS={job.qos}",
        f"JobState={state} Reason={job.reason.replace(' ', '_')} Dependency={job.dependency or '(null)'}",
        f"Requeue={int(job.requeue)} Restarts={job.restarts} BatchFlag=1 Reboot=0 ExitCode={job.exit_code}",
        f"RunTime={duration(job.run_time, full=True)} TimeLimit={limit} TimeMin=N/A",
        f"SubmitTime={timestamp(job.submit)} EligibleTime={timestamp(job.begin or job.submit)}",
        f"{times} Deadline=N/A",
        f"Partition={job.partition}",
        f"NodeList={job.node_list}",
        f"NumNodes={len(job.nodes) or 1} NumCPUs={job.needed} NumTasks={job.tasks} CPUs/Task={job.cpus}",
        "Command=(null)",
        f"WorkDir={job.workdir}",
        f"StdErr={err}",
        "StdIn=/dev/null",
        f"StdOut={out}",
    ]


def _change(state: State, verb: str, rest: list[str]) -> int:
    if controller_is_down(state, "slurm_suspend error"):
        return 1
    code = 0
    with state:
        for words in ",".join(rest).split(","):
            try:
                number, indexes = job_id(words)
            except ValueError:
                number, indexes = -1, None
            jobs = state.named(number, indexes)
            if not jobs:
                print(f"{UNKNOWN} for job {words}", file=sys.stderr)
                if verb in {"hold", "uhold", "release"}:
                    print(f"slurm_suspend error: {UNKNOWN}", file=sys.stderr)
                code = 1
            elif verb == "release":
                release(state, jobs, indexes)
            elif verb in {"requeue", "requeuehold"}:
                requeue(jobs, held=verb == "requeuehold")
            else:
                hold(jobs, "User" if verb == "uhold" else "")
        state.wake()
    return code


def _update(state: State, rest: list[str]) -> int:
    if controller_is_down(state, "slurm_update error"):
        return 1
    changes = dict(word.lower().split("=", 1) for word in rest if "=" in word)
    node, wanted = changes.get("nodename"), changes.get("state")
    if node is None or wanted not in {"down", "resume", "idle"}:
        print("slurm_update error: only NodeName= State=down|resume is simulated", file=sys.stderr)
        return 1
    with state:
        if wanted == "down":
            fail_node(state, node)
        else:
            state.down = [each for each in state.down if each != node]
        state.wake()
    return 0
