"""What a durable executor keeps in the store, so that its script can be run again: its run, and its calls' outcomes.

Made by executor.py; outcomes are written by `_loop.py`. A run begins with the first start under a name, goes
on whenever the script is started again, and ends when the executor is shut down cleanly or everything is
forgotten. The id of a call's task is RUN.CALL.FUNCTION: CALL is the call's number in the script, or made of
its key. It is also the name of its outcome in the store.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
from collections.abc import Collection, Iterable
from typing import Any

from batchport.envelope import Envelope
from batchport.errors import EnvelopeError, Reason, SupersededError, UsageError
from batchport.store import Keys, Store
from batchport.tasks import Failure, Outcome

__all__ = ["Run", "is_answer"]

_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,80}")
_KEYED = "key-"


def is_answer(outcome: Outcome) -> bool:
    """Return whether this is what the function itself came to, and not something that went wrong around it."""
    return outcome.failure is None or outcome.failure.reason is Reason.USER_ERROR


class Run:
    """One run of a durable script: the ids of its calls, and the outcomes that it keeps. Methods may block."""

    def __init__(self, store: Store, worker: str) -> None:
        self._store, self._worker, self._keys = store, worker, Keys(worker)
        self._lock = threading.Lock()
        self._owner = secrets.token_hex(4)
        self._token = ""
        self._calls = 0
        self._keys_used: set[str] = set()
        self._earlier: dict[str, str] = {}
        """Calls of an earlier start that this one has not made yet, and the ids of their tasks."""
        self._kept: set[str] = set()

    def begin(self, living: Iterable[str]) -> list[str]:
        """Go on with the run that an earlier start has left, or begin one. Raises StoreError.

        `living` are the tasks that the worker has adopted; returned are those of them that belong to a run
        which is over, and that nobody wants.
        """
        note = (self._store.get(self._keys.run) or b"").decode()
        self._token = note.partition(" ")[0] or secrets.token_hex(4)
        # Its new owner is noted, so that an older worker of this name does not end it.
        self._store.put(self._keys.run, self._note(self._token))
        names = self._store.names(self._keys.outcomes)
        self._store.delete([self._keys.outcome(name) for name in names if not self.has(name)])
        self._kept.update(filter(self.has, names))
        strangers = []
        for task_id in (*names, *living):
            if self.has(task_id):
                self._earlier[_call_of(task_id)] = task_id
            else:
                strangers.append(task_id)
        return [task_id for task_id in strangers if task_id not in names]

    def has(self, task_id: str) -> bool:
        """Return whether a task is one of this run."""
        return task_id.startswith(f"{self._token}.")

    def keeps(self, task_id: str) -> bool:
        """Return whether the outcome of a task is in the store."""
        return task_id in self._kept

    def next_id(self, function: str, key: str | None) -> str:
        """Return the task id of the next call, or of the call with this key.

        Raises UsageError if an earlier start made that call with another function, or this one made it already.
        """
        with self._lock:
            if key is None:
                self._calls += 1
                call = str(self._calls)
            else:
                call = _safe_key(key)
                self._refuse_if_used(call, key, function)
            task_id = f"{self._token}.{call}.{_safe(function)}"
            known = self._earlier.get(call, task_id)
            if known != task_id:
                raise UsageError(self._mismatch(key, call, known, function))
        return task_id

    def made(self, task_id: str) -> None:
        """Note that this start makes a call. Raises UsageError if another thread has just made one with its key."""
        call = _call_of(task_id)
        with self._lock:
            if call.startswith(_KEYED):
                self._refuse_if_used(call, call.removeprefix(_KEYED), _function_of(task_id))
                self._keys_used.add(call)
            self._earlier.pop(call, None)

    def _refuse_if_used(self, call: str, key: str, function: str) -> None:
        if call in self._keys_used:
            raise UsageError(
                f"the key {key!r} is that of an earlier call of this script, and this is another call, of {function}: "
                "give each call a key of its own"
            )

    def is_to_come(self, task_id: str) -> bool:
        """Return whether an earlier start made a call that this one has not made yet."""
        return self._earlier.get(_call_of(task_id)) == task_id

    def _mismatch(self, key: str | None, call: str, known: str, function: str) -> str:
        what, it_is = (
            (f"call {call} of this script", "number") if key is None else (f"the call with the key {key!r}", "key")
        )
        do = "give the calls keys, executor.options(key=...)" if key is None else "give it another key"
        return (
            f"{what} is one of {function}, and when this script ran last as {self._worker!r} it was one of "
            f"{_function_of(known)}: a call is known by its {it_is}, so it would get the result of the other one. "
            f"If the script was changed, {do}; drop what is kept, executor.forget(); or use another name"
        )

    def write(self, outcome: Outcome) -> None:
        """Keep an outcome; the first one stays. Raises StoreError."""
        if self.keeps(outcome.task_id):
            return
        failure, fields, parts = outcome.failure, dict[str, Any](attempts=outcome.attempts), (outcome.result or b"",)
        if failure is not None:
            fields |= {
                "reason": failure.reason.name,
                "message": failure.message,
                "evidence": failure.evidence,
                "advice": failure.advice,
            }
            parts = (failure.exception or b"",)
        envelope = Envelope("outcome", "", outcome.task_id, (*parts, outcome.output.encode()), fields)
        self._store.put(self._keys.outcome(outcome.task_id), envelope.to_bytes(), create=True)
        self._kept.add(outcome.task_id)

    def read(self, task_id: str) -> Outcome:
        """Return an outcome that is kept. Raises StoreError."""
        data = self._store.get(self._keys.outcome(task_id))
        try:
            envelope = Envelope.from_bytes(data or b"", ("outcome",))
            fields, (value, output) = envelope.fields, envelope.parts
            failure = None
            if "reason" in fields:
                words = fields["message"], fields["evidence"], fields["advice"]
                failure = Failure(Reason[fields["reason"]], *words, value or None)
        except (EnvelopeError, KeyError, ValueError) as error:
            failure = Failure(
                Reason.PAYLOAD,
                f"The kept outcome of call {_call_of(task_id)}, of {_function_of(task_id)}, can't be read.",
                "it is not in the store any more" if data is None else str(error),
                "Have it forgotten, executor.forget(future), and run the script again.",
            )
            return Outcome(task_id, failure=failure)
        return Outcome(
            task_id, value if failure is None else None, failure, fields["attempts"], output.decode(errors="replace")
        )

    def forget(self, task_ids: Collection[str]) -> None:
        """Remove outcomes, so that the script's next run makes these calls anew. Raises as `begin_anew`."""
        self._check_is_ours()
        self._store.delete(map(self._keys.outcome, task_ids))
        with self._lock:
            self._kept.difference_update(task_ids)
            for call in map(_call_of, task_ids):
                self._keys_used.discard(call)
                self._earlier.pop(call, None)

    def id_of(self, key: str, pending: Iterable[str]) -> str | None:
        """Return the task of the call that has this key, pending or of an earlier start; None if there is none."""
        call = _safe_key(key)
        with self._lock:
            known = (*pending, *self._earlier.values(), *self._kept)
            return next((task_id for task_id in known if _call_of(task_id) == call), None)

    def is_living(self, task_id: str) -> bool:
        """Return whether a task of an earlier start has no outcome, and this one has not made its call."""
        return self.is_to_come(task_id) and not self.keeps(task_id)

    def end(self) -> None:
        """Let the run be over, and remove all it keeps, unless another start has taken it over. Raises StoreError."""
        if self._store.get(self._keys.run) != self._note(self._token):
            return
        # First: whoever is started after this instant begins anew, whatever is left of the outcomes.
        self._store.delete([self._keys.run])
        self._store.delete(map(self._keys.outcome, self._kept))
        self._kept.clear()

    def begin_anew(self) -> list[str]:
        """Forget everything that earlier starts have left; return their tasks that live and nobody wants.

        Raises SupersededError and StoreError.
        """
        self._check_is_ours()
        token = secrets.token_hex(4)
        self._store.delete(map(self._keys.outcome, list(self._kept)))
        self._store.put(self._keys.run, self._note(token))
        living = [task_id for task_id in self._earlier.values() if not self.keeps(task_id)]
        with self._lock:
            self._earlier.clear()
            self._keys_used.clear()
        self._token = token
        self._kept.clear()
        return living

    def _note(self, token: str) -> bytes:
        return f"{token} {self._owner}".encode()

    def _check_is_ours(self) -> None:
        """Raise SupersededError if another start has taken the run over: what is kept is for that one."""
        if self._store.get(self._keys.run) not in {None, self._note(self._token)}:
            raise SupersededError(self._worker, "somebody")


def _call_of(task_id: str) -> str:
    return task_id.split(".")[1]


def _function_of(task_id: str) -> str:
    return task_id.split(".")[2]


def _safe_key(key: str) -> str:
    return _KEYED + (key if _PLAIN.fullmatch(key) else f"{_safe(key)}-{hashlib.sha256(key.encode()).hexdigest()[:16]}")


def _safe(text: str) -> str:
    """Return a text for people that may be part of a key in the store."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")[:60] or "call"
