"""sbatch: submits a job (https://slurm.schedmd.com/sbatch.html)."""

# ruff: noqa: PTH101, PTH103, PTH109, PTH119, PTH123, T201 - pathlib takes long to import; a command prints

from __future__ import annotations

import os
import pwd
import sys
import time

from .arguments import controller_is_down, open_state, parse
from .job import Job
from .job_ids import array_indexes
from .launch import kept_environment
from .scheduling import startable
from .state import State
from .words import minutes, timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["main"]

SHORT = (
    "J=job-name= o=output= e=error= a=array= t=time= p=partition= A=account= q=qos= C=constraint= c=cpus-per-task= "
    "n=ntasks= N=nodes= D=chdir= H=hold d=dependency= w=nodelist= i=input= Q=quiet M=clusters= x=exclude= v=verbose "
    "k=no-kill"
)
LONG = (
    "parsable no-requeue requeue export= mem= mem-per-cpu= gres= gpus= wrap= test-only comment= mail-type= mail-user= "
    "exclusive open-mode= reservation= licenses= nice= priority= signal= begin= kill-on-invalid-dep= wckey= "
    "ntasks-per-node= tmp= hint= export-file= get-user-env deadline= propagate= profile="
)
UNITS = {"": 1, "K": 1 / 1024, "M": 1, "G": 1024, "T": 1024 * 1024}
TIMED_OUT = "Socket timed out on send/recv operation"
UNAVAILABLE = "Requested node configuration is not available"
LIMIT = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
NO_SCRIPT = (
    "This does not look like a batch script.  The first",
    "line must start with #! followed by the path to an interpreter.",
    "For instance: #!/bin/sh",
)


class Refused(Exception):  # noqa: N818 - no error here: the answer
    """The controller does not take the job, in Slurm's words; `before` are lines that the command says first."""

    def __init__(self, words: str, *before: str) -> None:
        super().__init__(words)
        self.before = before


def main(arguments: list[str]) -> int:
    """Submit a job."""
    options, rest = parse("sbatch", arguments, SHORT, LONG, code=255)
    script = _script(options, rest)
    options = parse("sbatch", _directives(script), SHORT, LONG, code=255)[0] | options
    test_only = "test-only" in options
    state = open_state()
    _delay(state, "before")
    if controller_is_down(state, "allocation failure" if test_only else "sbatch: error: Batch job submission failed"):
        return 1
    with state:
        try:
            job = _job(state, options, rest)
            if test_only:
                return _answer_test(state, job)
            fault = _next_fault(state)
            if fault == "before":
                raise Refused(TIMED_OUT)
        except Refused as refused:
            for line in refused.before:
                _say(line)
            who = "allocation failure" if test_only else "sbatch: error: Batch job submission failed"
            print(f"{who}: {refused}", file=sys.stderr)
            return 1
        _keep(state, job, script)
        state.wake()
    _delay(state, "after")
    if fault == "after":
        _say(f"Batch job submission failed: {TIMED_OUT}")
        return 1
    if "quiet" not in options:
        cluster = f";{state.faults['cluster']}" if state.faults.get("cluster") else ""
        print(f"{job.id}{cluster}" if "parsable" in options else f"Submitted batch job {job.id}")
    return 0


def _say(words: str) -> None:
    print(f"sbatch: error: {words}", file=sys.stderr)


def _fail(*words: str, code: int = 1) -> NoReturn:
    for line in words:
        _say(line)
    sys.exit(code)


def _delay(state: State, when: str) -> None:
    time.sleep(state.faults.get(f"sbatch_{when}_s", 0))


def _next_fault(state: State) -> str:
    """Return what this call is to do wrong, of which there is one less then."""
    faults: list[str] = state.faults.get("sbatch", [])
    return faults.pop(0) if faults else ""


def _script(options: dict[str, str], rest: list[str]) -> str:
    if "wrap" in options:
        return f"#!/bin/sh\n# This script was created by sbatch --wrap.\n\n{options['wrap']}\n"
    if rest:
        try:
            with open(rest[0], encoding="utf-8", errors="surrogateescape") as file:
                script = file.read()
        except OSError:
            _fail(f"Unable to open file {rest[0]}")
    else:
        script = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
    if not script:
        _fail("Batch script is empty!")
    if not script.startswith("#!"):
        _fail(*NO_SCRIPT)
    return script


def _directives(script: str) -> list[str]:
    """Return the options of the #SBATCH lines, which stand before the first command."""
    found: list[str] = []
    for line in script.splitlines():
        if line.strip() and not line.startswith("#"):
            break
        if line.startswith("#SBATCH "):
            found += line.split()[1:]
    return found


def _number(options: dict[str, str], name: str, otherwise: int) -> int:
    words = options.get(name, str(otherwise))
    if not words.isdecimal() or not int(words):
        _fail(f'Invalid numeric value "{words}" for --{name}.')
    return int(words)


def _memory(options: dict[str, str]) -> int:
    words = options.get("mem", options.get("mem-per-cpu", "0"))
    unit = words.lstrip("0123456789").upper()
    if unit not in UNITS or not words[:1].isdecimal():
        _fail(f"Invalid --{'mem' if 'mem' in options else 'mem-per-cpu'} specification", code=255)
    return int(int(words[: len(words) - len(unit)]) * UNITS[unit])


def _limit(state: State, options: dict[str, str]) -> int | None:
    try:
        return minutes(options["time"]) if options.get("time", "0") != "0" else int(state.settings["default_minutes"])
    except ValueError:
        _fail("Invalid --time specification", code=255)


def _job(state: State, options: dict[str, str], rest: list[str]) -> Job:
    """Return the job that these options ask for; Refused if the cluster does not take it."""
    settings = state.settings
    if "gres" in options or "gpus" in options:
        _fail("Invalid generic resource (gres) specification")
    partition = options.get("partition", next(iter(settings["partitions"])))
    if partition not in settings["partitions"]:
        raise Refused("Invalid partition name specified", f"invalid partition specified: {partition}")
    job = Job(
        name=options.get("job-name")
        or ("wrap" if "wrap" in options else os.path.basename(rest[0]) if rest else "sbatch"),
        partition=partition,
        account=options.get("account", pwd.getpwuid(os.getuid()).pw_name),
        qos=options.get("qos", "normal"),
        cpus=_number(options, "cpus-per-task", 1),
        cpus_given="cpus-per-task" in options,
        tasks=_number(options, "ntasks", 1),
        tasks_given="ntasks" in options,
        memory_mib=_memory(options),
        minutes=_limit(state, options),
        requeue="no-requeue" not in options,
        workdir=options.get("chdir") or os.getcwd(),
        out={"none": os.devnull}.get(options.get("output", ""), options.get("output", ""))
        or ("slurm-%A_%a.out" if "array" in options else "slurm-%j.out"),
        err=options.get("error", ""),
        comment=options.get("comment", ""),
        export=options.get("export", ""),
        held="User" if "hold" in options else "",
        dependency=options.get("dependency", ""),
        wanted_nodes=options.get("nodelist", ""),
        submit=time.time(),
    )
    indexes = _indexes(state, options, job)
    _check_accounting(state, job, len(indexes or [0]))
    job.id = state.new_id()  # from here on a refusal costs an id
    if indexes:
        job.array, job.waiting = job.id, indexes
    if not set(options.get("constraint", "").replace("&", ",").split(",")) <= {"", *settings["features"]}:
        raise Refused("Invalid feature specification")
    if job.needed <= settings["cpus"] * settings["nodes"] and job.cpus > settings["cpus"]:
        _add_stillborn(state, job)
        raise Refused(UNAVAILABLE, "CPU count per node can not be satisfied")
    if job.memory_mib > settings["memory_mib"]:
        _add_stillborn(state, job)
        raise Refused(UNAVAILABLE, "Memory specification can not be satisfied")
    job.wait_for(f"JobHeld{job.held}" if job.held else "None")
    return job


def _output(options: dict[str, str]) -> str:
    usual = "slurm-%A_%a.out" if "array" in options else "slurm-%j.out"
    words = options.get("output") or usual
    return os.devnull if words == "none" else words


def _indexes(state: State, options: dict[str, str], job: Job) -> list[int] | None:
    if "array" not in options:
        return None
    try:
        indexes, step, job.at_once = array_indexes(options["array"])
    except ValueError:
        raise Refused("Invalid job array specification") from None
    if indexes[-1] >= state.settings["max_array_size"]:
        raise Refused("Invalid job array specification")
    job.shape = len(indexes), indexes[0], indexes[-1], step
    return indexes


def _check_accounting(state: State, job: Job, size: int) -> None:
    """Refuse what AccountingStorageEnforce does (https://slurm.schedmd.com/resource_limits.html)."""
    accounts, qos = state.settings["accounts"], state.settings["qos"]
    if accounts is not None and job.account not in accounts:
        if job.account != pwd.getpwuid(os.getuid()).pw_name:
            raise Refused("Invalid account or account/partition combination specified")
        job.account = accounts[0]
    if qos is None:
        return
    if job.qos not in qos and job.qos != "normal":
        raise Refused("Invalid qos specification")
    there = sum(len(each.waiting or [0]) for each in state.known() if not each.is_over and each.qos == job.qos)
    if qos.get(job.qos) is not None and there + size > qos[job.qos]:
        raise Refused(LIMIT, "QOSMaxSubmitJobPerUserLimit")


def _add_stillborn(state: State, job: Job) -> None:
    """Keep a record of a job that no node could ever hold, as Slurm does."""
    job.state, job.reason, job.start, job.end = "FAILED", "BadConstraints", job.submit, job.submit
    job.status, job.told = 1, "1:0"
    _add(state, job)


def _add(state: State, job: Job) -> None:
    state.serial += 1
    job.serial = state.serial
    job.folder = f"{state.folder}/jobs/{job.serial}"
    state.jobs.append(job)


def _keep(state: State, job: Job, script: str) -> None:
    _add(state, job)
    os.makedirs(job.folder)
    kept = kept_environment(job.export) | {"SLURM_SUBMIT_DIR": os.getcwd()}
    with open(f"{job.folder}/env", "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write("\0".join(f"{name}={value}" for name, value in kept.items()))
    with open(f"{job.folder}/slurm_script", "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(script)
    os.chmod(file.name, 0o700)


def _answer_test(state: State, job: Job) -> int:
    """Answer --test-only, which uses up a job id and looks at no time limit of a partition."""
    if job.needed > state.settings["cpus"] * state.settings["nodes"]:
        raise Refused(UNAVAILABLE)
    when = timestamp(time.time() + 3600 * any(True for _ in startable(state)))
    processors = f"{job.needed} processors on nodes n1 in partition {job.partition}"
    print(f"sbatch: Job {job.id} to start at {when} using {processors}", file=sys.stderr)
    return 0
