"""Who this worker is: its birth, its epoch, and names for its jobs that are unique for ever.

Called by the engine when it starts and for each job that it makes.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import string
from dataclasses import dataclass

from batchport.errors import UsageError
from batchport.processes import start_of
from batchport.store import Keys, Store

__all__ = [
    "LABEL_LENGTH",
    "Epoch",
    "age_of",
    "begin_epoch",
    "check_worker_name",
    "end_epoch",
    "job_name",
    "label_of",
    "newer_start",
]

LABEL_LENGTH = 30
_DIGITS = string.digits + string.ascii_lowercase
_WORKER_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_-]{0,38}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Epoch:
    """One start of a worker: `birth` is its store's, `number` counts the starts."""

    birth: str
    number: int


def check_worker_name(name: str) -> None:
    """Raise UsageError unless `name` can be part of keys, and a label at every backend."""
    if not _WORKER_NAME.fullmatch(name):
        raise UsageError(
            f"a worker can't be called {name!r}: use 1 to 40 of the characters A-Z a-z 0-9 _ -, "
            "with a letter or digit at both ends"
        )


def begin_epoch(store: Store, keys: Keys) -> Epoch:
    """Take the next epoch, so that no job of this start shares a name with one of another start.

    Raises UsageError if a worker of this name is known to be running on this machine, and StoreError if
    the store can't be written.
    """
    if (birth := store.get(keys.birth)) is None:
        store.put(keys.birth, _random_characters(8).encode(), create=True)
        birth = store.get(keys.birth) or b""
    numbers = sorted(int(name) for name in store.names(keys.epochs) if name.isdecimal())
    if numbers:
        _refuse_if_running(keys.worker, store.get(keys.epoch(numbers[-1])))
    number = numbers[-1] + 1 if numbers else 1
    while not store.put(keys.epoch(number), _whoami(ended=False), create=True):
        number += 1
    store.delete(keys.epoch(each) for each in numbers)
    return Epoch(birth.decode(), number)


def end_epoch(store: Store, keys: Keys, epoch: Epoch) -> None:
    """Note that this start has ended, so that the next one need not ask whether it lives."""
    store.put(keys.epoch(epoch.number), _whoami(ended=True))


def newer_start(store: Store, keys: Keys, epoch: Epoch) -> str | None:
    """Return, in words, who has started the worker of this name again since `epoch`; None if nobody has."""
    newest = max((int(name) for name in store.names(keys.epochs) if name.isdecimal()), default=0)
    if newest <= epoch.number:
        return None
    holder = json.loads(store.get(keys.epoch(newest)) or b"{}")
    who = f"process {holder['pid']} on {holder['host']}" if holder else "somebody"
    return f"{who}, start number {newest}"


def age_of(job: str) -> tuple[int, int]:
    """Return the epoch and the serial number of a job's name, which say which of two jobs is the newer one."""
    _, epoch, serial = job.rsplit("-", 2)
    return int(epoch, 36), int(serial, 36)


def label_of(*words: str) -> str:
    """Return words as a label: [a-z0-9-], beginning with a letter, at most LABEL_LENGTH characters."""
    text = re.sub(r"[^a-z0-9]+", "-", "-".join(filter(None, words)).lower())
    return text.lstrip(string.digits + "-")[:LABEL_LENGTH].rstrip("-")


def job_name(label: str, epoch: Epoch, serial: int, longest: int) -> str:
    """Return a name for the worker's job number `serial`: label, birth, epoch, serial; at most `longest` characters."""
    unique = f"{epoch.birth}-{_base36(epoch.number)}-{_base36(serial)}"
    return f"{label[: longest - len(unique) - 1].rstrip('-') or 'b'}-{unique}"


def _base36(number: int) -> str:
    digits = ""
    while number or not digits:
        number, digit = divmod(number, 36)
        digits = _DIGITS[digit] + digits
    return digits


def _random_characters(count: int) -> str:
    return "".join(secrets.choice(_DIGITS) for _ in range(count))


def _whoami(*, ended: bool) -> bytes:
    pid = os.getpid()
    about = {"host": socket.gethostname(), "pid": pid, "started": start_of(pid), "ended": ended}
    return json.dumps(about).encode()


def _refuse_if_running(worker: str, about: bytes | None) -> None:
    holder = json.loads(about or b"{}")
    if not holder or holder["ended"] or holder["host"] != socket.gethostname():
        return
    pid = holder["pid"]
    if (started := start_of(pid)) is None or started != holder["started"]:
        return
    where = "in this process" if pid == os.getpid() else f"as process {pid} on this machine"
    raise UsageError(
        f"a worker named {worker!r} is already running on this store, {where}; "
        "end it first, or choose another name for this one"
    )
