"""Launch: the start of one job's script, as slurmd does it: its files, its environment, its session."""

# ruff: noqa: PTH112, PTH118, PTH123 - pathlib is not needed

from __future__ import annotations

import os
import pwd
import signal

from .job import Job
from .words import file_name

__all__ = ["Launch", "adopt_orphans", "kept_environment"]

FILE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _prctl(option: int, value: int) -> bool:
    """Set one of Linux's options of a process, and return whether it took (prctl(2))."""
    try:
        import ctypes

        return bool(ctypes.CDLL(None).prctl(option, value) == 0)
    except (ImportError, AttributeError, OSError):
        return False


def adopt_orphans() -> bool:
    """Have orphans below come to this process, so that none gets out of sight; return whether they will."""
    return _prctl(36, 1)  # PR_SET_CHILD_SUBREAPER


def kept_environment(export: str) -> dict[str, str]:
    """Return what a job gets of the environment of its sbatch (https://slurm.schedmd.com/sbatch.html#OPT_export)."""
    words = export.split(",") if export else ["ALL"]
    kept = dict(os.environ) if "ALL" in words else _login()
    for word in words:
        name, equals, value = word.partition("=")
        if equals or name in os.environ:
            kept[name] = value if equals else os.environ[name]
    if export not in {"", "ALL"}:
        kept |= {"SLURM_EXPORT_ENV": export, "SLURM_GET_USER_ENV": "1"}
    return kept


def _login() -> dict[str, str]:
    user = pwd.getpwuid(os.getuid())
    kept = {name: value for name, value in os.environ.items() if name.startswith("SLURM_")}
    kept |= {"HOME": user.pw_dir, "LOGNAME": user.pw_name, "USER": user.pw_name, "SHELL": user.pw_shell}
    return kept | {"PATH": "/usr/local/bin:/usr/bin:/bin", "TMPDIR": "/tmp", "ENVIRONMENT": "BATCH"}  # noqa: S108


def _environment(job: Job) -> dict[str, str]:
    with open(f"{job.folder}/env", encoding="utf-8", errors="surrogateescape") as file:
        kept = dict(each.split("=", 1) for each in file.read().split("\0") if "=" in each)
    node, user = job.nodes[0][0], pwd.getpwuid(os.getuid()).pw_name
    here = job.nodes[0][1]
    words: dict[str, object] = {
        "SLURMD_NODENAME": node,
        "SLURM_CLUSTER_NAME": "simulated",
        "SLURM_CPUS_ON_NODE": here,
        "SLURM_GTIDS": 0,
        "SLURM_JOBID": job.id,
        "SLURM_JOB_ACCOUNT": job.account,
        "SLURM_JOB_CPUS_PER_NODE": here,
        "SLURM_JOB_GID": os.getgid(),
        "SLURM_JOB_ID": job.id,
        "SLURM_JOB_NAME": job.name,
        "SLURM_JOB_NODELIST": job.node_list,
        "SLURM_JOB_NUM_NODES": len(job.nodes),
        "SLURM_JOB_PARTITION": job.partition,
        "SLURM_JOB_QOS": job.qos,
        "SLURM_JOB_UID": os.getuid(),
        "SLURM_JOB_USER": user,
        "SLURM_LOCALID": 0,
        "SLURM_NNODES": len(job.nodes),
        "SLURM_NODEID": 0,
        "SLURM_NODELIST": job.node_list,
        "SLURM_NODE_ALIASES": "(null)",
        "SLURM_PRIO_PROCESS": 0,
        "SLURM_PROCID": 0,
        "SLURM_SUBMIT_DIR": kept.get("SLURM_SUBMIT_DIR", job.workdir),
        "SLURM_SUBMIT_HOST": os.uname().nodename,
        "SLURM_TASKS_PER_NODE": here // job.cpus,
        "SLURM_TASK_PID": os.getpid(),
        "SLURM_TOPOLOGY_ADDR": node,
        "SLURM_TOPOLOGY_ADDR_PATTERN": "node",
        "SLURM_WORKING_CLUSTER": "simulated:127.0.0.1:6817:9728:109",
    }
    words |= {"SLURM_MEM_PER_NODE": job.memory_mib} if job.memory_mib else {"SLURM_MEM_PER_CPU": 500}
    if job.cpus_given:
        words["SLURM_CPUS_PER_TASK"] = job.cpus
    if job.tasks_given:
        words |= {"SLURM_NPROCS": job.tasks, "SLURM_NTASKS": job.tasks}
    if job.restarts:
        words["SLURM_RESTART_COUNT"] = job.restarts
    if job.index is not None:
        size, first, last, step = job.shape
        words |= {"SLURM_ARRAY_JOB_ID": job.array, "SLURM_ARRAY_TASK_ID": job.index, "SLURM_ARRAY_TASK_COUNT": size}
        words |= {"SLURM_ARRAY_TASK_MIN": first, "SLURM_ARRAY_TASK_MAX": last, "SLURM_ARRAY_TASK_STEP": step}
    return kept | {name: str(value) for name, value in words.items()}


class Launch:
    """One start of a job's script; `start` returns its process, or 0 if its output cannot be opened."""

    def __init__(self, job: Job, folder: str) -> None:
        self.job, self.folder = job, folder
        job.out = os.path.join(job.workdir, file_name(job.out, job))
        job.err = os.path.join(job.workdir, file_name(job.err, job)) if job.err else ""

    def start(self) -> int:
        """Start the script."""
        self.complaint = "" if os.path.isdir(self.job.workdir) else self._no_workdir()
        try:
            out = os.open(self.job.out, FILE, 0o666)
            err = os.open(self.job.err, FILE, 0o666) if self.job.err else os.dup(out)
        except OSError:
            return 0
        controller = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                self._become(out, err, controller)
            finally:
                os._exit(2)
        os.close(out)
        os.close(err)
        return pid

    def _no_workdir(self) -> str:
        return f"couldn't chdir to `{self.job.workdir}': No such file or directory: going to /tmp instead"

    def _become(self, out: int, err: int, controller: int) -> None:
        os.setsid()
        _prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a job does not live on unnoticed
        if os.getppid() != controller:
            return
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        for target, source in enumerate((os.open(os.devnull, os.O_RDONLY), out, err)):
            os.dup2(source, target)
        os.closerange(3, 256)
        if self.complaint:
            self._say(self.complaint)
        os.chdir("/tmp" if self.complaint else self.job.workdir)  # noqa: S108 - as Slurm does
        script = f"{self.job.folder}/slurm_script"
        try:
            os.execve(script, [script], _environment(self.job))  # noqa: S606 - a job's script is to be run
        except OSError as error:
            with open(script, encoding="utf-8", errors="replace") as file:
                interpreter = file.readline()[2:].split()[0]
            self._say(f"execve(): bad interpreter({interpreter}): {error.strerror}")

    def _say(self, words: str) -> None:
        os.write(2, f"slurmstepd-{self.job.nodes[0][0]}: error: {words}\n".encode())
