"""Supervise one job of the embedded backend, and hold what a job's folder means.

`LocalAdapter` calls `start`, `read_record` and `cancel`; a supervisor, which `start` makes, runs `main`. This
module imports neither batchport nor more of the standard library than it must, since it is loaded anew
for every job.

A job's folder holds `script` (what to run), `state` (what `read_record` returns), `log` (what the job
printed), `cancel` (somebody asked for its end), `told` (a poll has reported its end) and `lock` (held while
the job is being submitted). An array's holds one such folder for each element besides, named by its index; its
own supervisor starts each element when there are slots for it, and each element then has a supervisor of its own.
"""

# Importing pathlib takes longer than all the rest of this file:
# ruff: noqa: PTH102, PTH105, PTH110, PTH120, PTH123, PTH208

import contextlib
import errno
import fcntl
import os
import signal
import sys
import time

__all__ = ["FINAL", "INDEX", "birth", "cancel", "main", "read_record", "start"]

INDEX = "BATCHPORT_LOCAL_INDEX"
"""The variable that holds an element's index."""
FINAL = {"SUCCEEDED", "FAILED", "CANCELLED"}
AWAITED = {signal.SIGTERM, signal.SIGCHLD, signal.SIGALRM}
KILL_WAIT_S = 5.0
"""How long a job may go on after SIGTERM, before SIGKILL."""
SLOT_POLL_S = 0.02
SAMPLE_S = 0.1
"""How often the memory of a job with a memory limit is looked at, at most."""


class Cancelled(Exception):  # noqa: N818 - no error: the signal's way out of whatever waits
    """Somebody asked for the end of a job that still waits for its slots."""


class Process:
    """What the system says of one living process. `session` is its process group where there is no /proc."""

    def __init__(self, parent: int, session: int, birth: str, kib: int) -> None:
        self.parent, self.session, self.birth, self.kib = parent, session, birth, kib


def start(folder: str, script: str, slots_folder: str, *numbers: int) -> None:
    """Start a supervisor for the job in `folder`, unless the folder had one before; return when its record is there.

    `numbers` are those of `main`. Raises OSError if no job could be started; there is then none.
    """
    import subprocess  # the supervisor itself does without it

    with open(f"{folder}/lock", "w", encoding="utf-8") as lock:
        # The supervisor inherits the lock as its standard input, and lets go of it when its record is there:
        # of two submits of one name the second finds the first's job, or that it died before it made one.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if read_record(folder):
            return
        with open(f"{folder}/script", "w", encoding="utf-8") as file:
            file.write(script)
        # Imported, since what Python runs as a script it compiles each time anew.
        code = "import sys; sys.path.append(sys.argv[1]); from _supervisor import main; main(*sys.argv[2:])"
        argv = [sys.executable, "-I", "-S", "-c", code, os.path.dirname(__file__), folder, slots_folder]
        argv += map(str, numbers)
        began = subprocess.run(argv, stdin=lock, capture_output=True, text=True, start_new_session=True, check=False)
        if not read_record(folder):
            raise OSError(errno.ECHILD, f"the job's supervisor did not start: {began.stderr.strip()}")


def cancel(folder: str) -> None:
    """Ask for the end of the job in `folder`. FileNotFoundError: there is none; ProcessLookupError: just over."""
    # The mark first: a supervisor that has no record yet looks for it as soon as it has one.
    with open(f"{folder}/cancel", "w", encoding="utf-8"):
        pass
    record = read_record(folder)
    if record and record["state"] not in FINAL:
        os.kill(int(record["supervisor"]), signal.SIGTERM)


def _write_record(folder: str, evidence: str, **words: object) -> None:
    """Replace the job's state as a whole, so that no reader ever sees half of it."""
    draft = f"{folder}/state.{os.getpid()}"
    with open(draft, "w", encoding="utf-8") as file:
        file.write(" ".join(f"{key}={value}" for key, value in words.items()) + "\n" + evidence)
    os.replace(draft, f"{folder}/state")


def read_record(folder: str) -> dict[str, str] | None:
    """Return the job's state, or None if no job was ever started in this folder.

    Always there: `state`, `reason` and `exit_code` ("" if there is none), `size`, `evidence`, and `supervisor`
    and `born`, which together name its process; `job` and `job_born` once it has run. A job whose supervisor
    is gone without a last word is declared lost here, once, and what is left of it is killed.
    """
    record = _read(folder)
    if record is None or record["state"] in FINAL or birth(int(record["supervisor"])) == record["born"]:
        return record
    record = _read(folder)  # it may have ended between our first look at its state and at its process
    if record is None or record["state"] in FINAL:
        return record
    _kill_orphans(int(record.get("job", -1)), record.get("job_born"))
    evidence = f"the job's supervisor, process {record['supervisor']}, is gone and left no word: killed, or a reboot"
    _write_record(folder, evidence, **_words(record) | {"state": "FAILED", "reason": "NODE_LOST"})
    return _read(folder)


def _read(folder: str) -> dict[str, str] | None:
    try:
        with open(f"{folder}/state", encoding="utf-8") as file:
            words, _, evidence = file.read().partition("\n")
    except (FileNotFoundError, NotADirectoryError):
        return None
    return dict(word.split("=", 1) for word in words.split(" ")) | {"evidence": evidence}


def _words(record: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in record.items() if key != "evidence"}


def birth(pid: int) -> str | None:
    """Return when the process `pid` was born, in words that no later process of that number shares.

    None if there is no such process, or only its zombie. On Linux field 22 of /proc/PID/stat (ticks since
    boot, https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html) and the boot's id, elsewhere `lstart` of ps.
    """
    if not os.path.exists("/proc/self/stat"):
        found = _processes().get(pid)
        return found.birth if found else None
    found = _process(pid)
    with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
        return f"{found.birth}@{file.read().strip()}" if found else None


def _process(pid: int) -> Process | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if fields[0] in {b"Z", b"X"}:
        return None
    kib = int(fields[21]) * os.sysconf("SC_PAGE_SIZE") // 1024
    return Process(int(fields[1]), int(fields[3]), fields[19].decode(), kib)


def _processes() -> dict[int, Process]:
    if os.path.exists("/proc/self/stat"):
        found = {int(name): _process(int(name)) for name in os.listdir("/proc") if name.isdecimal()}
        return {pid: process for pid, process in found.items() if process}
    import subprocess  # where there is no /proc, a slower start is the price

    argv = ["ps", "-A", "-o", "pid=,ppid=,pgid=,rss=,stat=,lstart="]
    out = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | {"LC_ALL": "C"}).stdout
    rows = [line.split() for line in out.splitlines()]
    return {
        int(row[0]): Process(int(row[1]), int(row[2]), "_".join(row[5:]), int(row[3]))
        for row in rows
        if not row[4].startswith("Z")
    }


def _members(session: int, supervisor: int = -1) -> dict[int, Process]:
    """Return the living processes of this session or below this supervisor, and all that descend from them."""
    everything = _processes()
    found = {pid for pid, process in everything.items() if process.session == session}
    while more := {pid for pid, each in everything.items() if each.parent in found | {supervisor}} - found:
        found |= more
    return {pid: everything[pid] for pid in found}


def _send(number: int, pids: dict[int, Process]) -> bool:
    """Signal these processes, and return whether any was there to be signalled."""
    sent = False
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # gone, or another user's: not ours to end
            os.kill(pid, number)
            sent = True
    return sent


def _kill_orphans(job: int, born: str | None) -> None:
    """Kill what is left of a job whose supervisor died.

    A session's number is not given out again while a process of that session lives, so it names the job
    unless its leader's number has gone to another process, born at another time.
    """
    for _ in range(100):  # what has not gone after a second is stuck in the kernel, and goes when it leaves it
        if birth(job) not in {None, born} or not _send(signal.SIGKILL, _members(job)):
            return
        time.sleep(0.01)


class Job:
    """The job's own process, which leads a session of its own, and all that descends from it."""

    def __init__(self, script: str, index: int | None) -> None:
        self.status: int | None = None
        self._index = index
        # PR_SET_CHILD_SUBREAPER: orphans below come to this process, not to init, so none gets out of sight.
        self._adopts = _prctl(36, 1)
        supervisor = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._become(script, supervisor)
            finally:
                os._exit(127)

    def _become(self, script: str, supervisor: int) -> None:
        os.setsid()
        _prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: the job does not live on unnoticed
        if os.getppid() != supervisor:
            return
        for number in (signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores the last two
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, AWAITED)
        if self._index is not None:
            os.environ[INDEX] = str(self._index)
        try:
            os.execvp("bash", ["bash", script])  # noqa: S606 - a shell is what it starts
        except OSError as error:
            os.write(2, f"bash cannot be run: {error.strerror}\n".encode())

    def is_over(self) -> bool:
        """Reap what has ended, and return whether the job's own process has."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self.pid:
                    self.status = ended[1]
        return self.status is not None

    def is_empty(self) -> bool:
        """Return whether no process of the job is left."""
        if not self.is_over():
            return False
        if not self._adopts:
            return not _members(self.pid)
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return True
        return False

    def kib(self, enough: int) -> int:
        """Return the memory of all processes of the job in KiB, exactly if it is more than `enough`.

        Resident sizes count what forked processes share once for each, so they are only an upper bound,
        which costs little; the proportional size counts it once
        (https://www.kernel.org/doc/html/latest/filesystems/proc.html, smaps_rollup).
        """
        members = _members(self.pid, os.getpid())
        most = sum(each.kib for each in members.values())
        return most if most <= enough else sum(_proportional_kib(pid, each.kib) for pid, each in members.items())

    def end(self, kill_wait_s: float) -> None:
        """Ask all processes of the job to end and, `kill_wait_s` seconds later, kill what is left.

        Returns when nothing of the job lives, however long that takes: the slots are its own until then.
        """
        deadline = time.monotonic() + kill_wait_s
        if kill_wait_s:
            _send(signal.SIGTERM, _members(self.pid, os.getpid()))
        while not self.is_empty():
            if time.monotonic() >= deadline:
                _send(signal.SIGKILL, _members(self.pid, os.getpid()))
            time.sleep(0.01)


def _prctl(option: int, value: int) -> bool:
    """Set one of Linux's options of a process, and return whether it took (prctl(2))."""
    try:
        import ctypes  # late: the submitter does not wait for it

        return bool(ctypes.CDLL(None).prctl(option, value) == 0)
    except (ImportError, AttributeError, OSError):
        return False


def _proportional_kib(pid: int, resident: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(b"Pss:"))
    except (OSError, StopIteration):
        return resident


def _take_slots(folder: str, slots: int, wanted: int) -> list[int]:
    """Wait until `wanted` of the `slots` files are locked by this process; return them, open.

    Only who holds the turnstile looks for free slots, and all others sleep in the kernel. So a long
    queue costs nothing, and two jobs that each want several slots never wait for each other.
    """
    turnstile = os.open(f"{folder}/turnstile", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(turnstile, fcntl.LOCK_EX)
    files = [os.open(f"{folder}/{slot}", os.O_RDWR | os.O_CREAT, 0o600) for slot in range(slots)]
    held: list[int] = []
    try:
        while len(held) < wanted:
            for file in files:
                if file not in held and len(held) < wanted:
                    with contextlib.suppress(BlockingIOError):
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        held.append(file)
            if len(held) < wanted:
                time.sleep(SLOT_POLL_S)
    except Cancelled:  # an array may go on for a while until its elements have ended, and wants no more
        held = []
        raise
    finally:
        for other in {turnstile, *files} - {*held}:
            os.close(other)
    return held


def _watch(job: Job, memory_mib: int, time_limit_s: int) -> tuple[str, str]:
    """Sleep until the job's process ends or must be ended; return the reason and evidence, or two empty strings."""
    deadline = time.monotonic() + time_limit_s if time_limit_s else float("inf")
    pause = SAMPLE_S if memory_mib else float("inf")
    while True:
        wait = min(pause, deadline - time.monotonic())
        signal.setitimer(signal.ITIMER_REAL, 0 if wait == float("inf") else max(wait, 0.001))
        received = signal.sigwait(AWAITED)
        if job.is_over():
            return "", ""
        if received == signal.SIGTERM:
            return "CANCELLED", "cancelled while it ran"
        began = time.monotonic()
        if began >= deadline:
            return "TIMEOUT", f"it ran longer than its time limit of {time_limit_s} s"
        if memory_mib:
            used = job.kib(memory_mib * 1024)
            if used > memory_mib * 1024:
                return "OUT_OF_MEMORY", f"its processes used {used // 1024} MiB, and {memory_mib} MiB were allowed"
            # Looking costs more the more processes the machine has: no more than one part in twenty of a CPU.
            pause = max(SAMPLE_S, 20 * (time.monotonic() - began))


def _ending(status: int) -> tuple[int, str]:
    if not os.WIFSIGNALED(status):
        return os.WEXITSTATUS(status), f"exit code {os.WEXITSTATUS(status)}"
    number = os.WTERMSIG(status)
    names = {each.value: each.name for each in signal.Signals}
    return 128 + number, f"ended by signal {names.get(number, number)}"


def _cancel_waiting(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not break off what the first began
    raise Cancelled


def main(folder: str, slots_folder: str, *numbers: str) -> None:
    """Run the job in `folder` to its end.

    `numbers` are how many slots there are, how many of them each element takes, its memory limit in MiB and
    its time limit in seconds, 0 for no limit, and how many elements there are.

    Ends at once in the submitter's child, so that init and not the submitter has the supervisor to
    reap. Standard input is the job's lock, and output and error are what the submitter waits for.
    """
    slots, cpus, memory_mib, time_limit_s, size = map(int, numbers)
    if os.fork():
        os._exit(0)
    os.setsid()
    signal.signal(signal.SIGCHLD, lambda *_: None)  # some systems throw an ignored signal away, even if awaited
    words = {**_myself(), "size": size}
    try:
        signal.signal(signal.SIGTERM, _cancel_waiting)
        for index in range(size if size > 1 else 0):
            os.mkdir(f"{folder}/{index}")
        _write_record(folder, "waiting for a slot", state="QUEUED", **words)
        _print_to(f"{folder}/log")  # lets go of the lock and of the submitter: the job is there
        if os.path.exists(f"{folder}/cancel"):
            raise Cancelled
        if size > 1:
            _run_array(folder, words, slots_folder, (slots, cpus, memory_mib, time_limit_s))
            return
        held = _take_slots(slots_folder, slots, cpus)
        signal.pthread_sigmask(signal.SIG_BLOCK, AWAITED)
    except Cancelled:
        _never_ran(folder, words)
        return
    _run(folder, f"{folder}/script", words, (memory_mib, time_limit_s))
    for slot in held:
        os.close(slot)


def _myself() -> dict[str, object]:
    return {"reason": "", "exit_code": "", "supervisor": os.getpid(), "born": birth(os.getpid()), "size": 1}


def _print_to(log: str) -> None:
    null, file = os.open(os.devnull, os.O_RDWR), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for target, source in enumerate((null, file, file)):
        os.dup2(source, target)


def _never_ran(folder: str, words: dict[str, object]) -> None:
    why = "cancelled while it waited for a slot; it never ran"
    _write_record(folder, why, state="CANCELLED", **{**words, "reason": "CANCELLED"})


def _run(folder: str, script: str, words: dict[str, object], limits: tuple[int, int], index: int | None = None) -> None:
    """Run a plain job, or one element of an array, to its end; AWAITED are blocked, and its slots are taken.

    `limits` are its memory in MiB and its time in seconds.
    """
    where = f"on {os.uname().nodename}"
    job = Job(script, index)
    words |= {"job": job.pid, "job_born": birth(job.pid)}
    _write_record(folder, f"{where}, process {job.pid}", state="RUNNING", **words)
    if os.path.exists(f"{folder}/cancel"):  # set before the record told whom to signal
        os.kill(os.getpid(), signal.SIGTERM)
    reason, why = _watch(job, *limits)
    job.end(KILL_WAIT_S if reason in {"CANCELLED", "TIMEOUT"} else 0)
    words["exit_code"], how = _ending(job.status or 0)
    words["reason"] = reason
    state = "CANCELLED" if reason == "CANCELLED" else "FAILED" if reason or words["exit_code"] else "SUCCEEDED"
    _write_record(folder, ", ".join(filter(None, (why, how, where))), state=state, **words)


def _run_array(folder: str, words: dict[str, object], slots_folder: str, numbers: tuple[int, int, int, int]) -> None:
    """Start each element once there are slots for it, and wait until all have ended."""
    slots, cpus, memory_mib, time_limit_s = numbers
    elements: dict[int, str] = {}
    size, cancelled = int(str(words["size"])), False
    try:
        for index in range(size):
            element = f"{folder}/{index}"
            held = _take_slots(slots_folder, slots, cpus)
            # Blocked over the fork, so that a cancel reaches the element's supervisor only once it can take it.
            signal.pthread_sigmask(signal.SIG_BLOCK, AWAITED)
            if os.path.exists(f"{element}/cancel"):
                _never_ran(element, _myself())
            elif (pid := os.fork()) == 0:
                try:
                    os.setsid()
                    _print_to(f"{element}/log")
                    _run(element, f"{folder}/script", _myself(), (memory_mib, time_limit_s), index)
                finally:
                    os._exit(0)
            else:
                elements[pid] = element
                if len(elements) == 1:
                    _write_record(folder, f"on {os.uname().nodename}", state="RUNNING", **words)
            for slot in held:
                os.close(slot)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, AWAITED)
        for pid in elements:
            os.waitpid(pid, 0)
    except Cancelled:
        cancelled = True
        signal.pthread_sigmask(signal.SIG_UNBLOCK, AWAITED)
        for element in elements.values():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                cancel(element)
        for pid in elements:
            with contextlib.suppress(ChildProcessError):  # reaped before the cancel came
                os.waitpid(pid, 0)
    states = [(_read(f"{folder}/{index}") or {"state": "CANCELLED"})["state"] for index in range(size)]
    ended = {state: states.count(state) for state in dict.fromkeys(states)}
    state = "CANCELLED" if cancelled else "SUCCEEDED" if set(ended) == {"SUCCEEDED"} else "FAILED"
    told = ", ".join(f"{count} {each.lower()}" for each, count in ended.items())
    words["reason"] = "CANCELLED" if cancelled else ""
    _write_record(folder, f"of {size} elements: {told}", state=state, **words)
