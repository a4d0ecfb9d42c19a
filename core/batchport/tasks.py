"""What passes between a host and the worker: a Task in, an Outcome out.

Called by hosts (`batchport.hosts`), which make tasks and receive outcomes, and by the worker, which
never looks inside the bytes of either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from batchport.errors import Reason
from batchport.jobs import Resources

__all__ = ["Blob", "Failure", "Outcome", "Task"]


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes by reference: a function or one argument, pickled.

    `key` is different for different bytes, in [A-Za-z0-9_-] and at most 80 characters; blobs of one key are
    stored once, however many tasks share them, so equal bytes should have equal keys. `size` is in bytes.
    `read` gives the bytes; the worker calls it when it makes the payload, and may call it again.
    """

    key: str
    size: int
    read: Callable[[], Awaitable[bytes]] = field(repr=False, compare=False)

    @classmethod
    def of(cls, data: bytes) -> Blob:
        """Return a blob that holds `data`, with its SHA-256 as key."""

        async def read() -> bytes:
            return data

        return cls(hashlib.sha256(data).hexdigest(), len(data), read)


@dataclass(frozen=True, slots=True)
class Task:
    """One function call that a host wants done. `id` is unique for ever.

    `label` is for people: it begins the names of this task's jobs. `codec` says how the blobs were made and the result
    will be: "cloudpickle", or "serializer", where the first argument is a pickled object that is not the function's
    business: its `deserialize(bytes)` reads the function and the other arguments, its `serialize(result)` gives the
    result's bytes.
    """

    id: str
    function: Blob
    args: tuple[Blob, ...] = ()
    kwargs: Mapping[str, Blob] = field(default_factory=dict)
    resources: Resources = field(default_factory=Resources)
    codec: str = "cloudpickle"
    label: str = ""

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """The function and the arguments."""
        return (self.function, *self.args, *self.kwargs.values())


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a task failed, for people and programs.

    `message` is one sentence, `evidence` what was seen (may be empty, may have lines), `advice` what to
    do next. `exception` is the pickled exception where the function raised one that survives a round
    trip; only the host unpickles it.
    """

    reason: Reason
    message: str
    evidence: str = ""
    advice: str = ""
    exception: bytes | None = field(default=None, repr=False)

    def __str__(self) -> str:
        """Return the failure as a person should read it: sentence, evidence, advice."""
        lines = [f"{_sentence(self.message)} [{self.reason.value}]"]
        lines += [f"  | {line}" for line in self.evidence.strip().splitlines()]
        if self.advice:
            lines.append(f"  -> {_sentence(self.advice)}")
        return "\n".join(lines)


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}{'' if words.endswith(('.', '?', '!')) else '.'}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a task came to: `result` (pickled bytes), or `failure`; never both, never neither.

    `attempts` counts the jobs that started the task. `output` is the end of what it printed.
    """

    task_id: str
    result: bytes | None = field(default=None, repr=False)
    failure: Failure | None = None
    attempts: int = 1
    output: str = field(default="", repr=False)
