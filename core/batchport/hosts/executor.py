"""BatchExecutor: a `concurrent.futures.Executor` whose calls run as tasks on a batch backend.

Called by users. It pickles calls and hands them to a worker (`_loop.py`); the outcomes come back in
TaskFutures (`futures.py`).
"""

from __future__ import annotations

import copy
import inspect
import itertools
import os
import secrets
import shutil
import site
import sys
import sysconfig
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, ParamSpec, Self, TypedDict, TypeVar, Unpack

from batchport.adapter import BatchWorkerAdapterBase
from batchport.backends import EMBEDDED, make_adapter
from batchport.errors import UsageError
from batchport.hosts._code import zips_of
from batchport.hosts._durable import Run
from batchport.hosts._loop import BrokenWorkerError, WorkerLoop, join_or_cancel
from batchport.hosts._pickling import Pickled, Pickler, name_of
from batchport.hosts._waiting import WaitingBytes
from batchport.hosts.futures import RemoteTraceback, TaskFuture
from batchport.jobs import Resources
from batchport.store import FolderStore, open_store
from batchport.tasks import Blob, Task
from batchport.worker import BatchWorker, Counts

__all__ = ["BatchExecutor", "BrokenWorkerError", "RemoteTraceback", "TaskFuture"]

P = ParamSpec("P")
T = TypeVar("T")


_NO_KEYWORDS: Mapping[str, Blob] = {}


class _Asked(TypedDict, total=False):
    """What `options` takes: a call's key and label, and the fields of Resources."""

    key: str | None
    label: str

    cpus: int
    memory_mib: int | None
    gpus: int
    time_limit_s: int | None
    extra: Mapping[str, object]


class BatchExecutor(Executor):
    """Runs calls on a batch backend, as the standard library's executors run them in threads or processes.

        with BatchExecutor("local") as executor:
            print(executor.submit(pow, 2, 10).result())

    backend: the name of an installed backend, or an adapter. options: the options of a named backend, its
        Options or a mapping. store: a folder or URL that jobs can reach as well; only the local backend
        needs none, and gets a temporary folder that is removed at the end.
    name: the worker's; no two may run under one name on one store. It makes the executor durable (see below), and
        needs a store that stays. None: a new one.
    code: modules and folders of the user's own that jobs shall be able to import, and that are not installed
        there. They are zipped as they are now, and searched first.
    progress: show a bar on standard error while work is pending; needs rich.
    worker_options: those of BatchWorker. Unless `path` is given, jobs on a store that is a folder get this
        process's own entries of sys.path: the script's folder, and what was added.

    The worker is open once this returns. Raises UsageError if something given here can't work, StoreError
    if the store can't be used, and what the adapter's `open` raises; nothing is left behind then.

    What differs from the standard library: calls are pickled by cloudpickle, at once and one argument at a
    time, so that lambdas, closures and classes from `__main__` work, a call that can't be pickled is refused
    at once, and two arguments that are the same object arrive as two. A running task can be cancelled. Leaving
    a `with` by KeyboardInterrupt cancels all tasks and waits until their jobs have ended.

    An executor that nobody holds any more ends after its work, and the interpreter waits for it at exit. If
    its worker crashes, which is a bug, all futures get a BrokenWorkerError.

    A durable executor's script can be run again, unchanged, after it died at any instant or left its jobs
    alone by `detach`: each call gets the outcome that the same call had, or the job that it had, and is
    sent only if it has neither. Which call is the same is told by its key, `options(key=...)`, else by its
    function's name and its number in the script (so several threads need keys, and several executors
    several names); arguments are not compared. What is kept is what functions return and raise; a call that
    failed otherwise (its job was lost, used too much memory, was cancelled) is sent again by the next run.
    All of it is kept until it is forgotten, or until `shutdown` or a `with` that is left without an
    exception, when all work is done: the next run then begins anew. Leaving a `with` by an exception other
    than KeyboardInterrupt is `detach`, and so takes up to a minute while the backend is down; Ctrl-C leaves at once.
    """

    def __init__(  # noqa: PLR0913 - each option has its line above
        self,
        backend: str | BatchWorkerAdapterBase,
        store: str | os.PathLike[str] | None = None,
        *,
        name: str | None = None,
        options: object = None,
        code: Iterable[ModuleType | str | os.PathLike[str]] = (),
        progress: bool = False,
        **worker_options: Any,
    ) -> None:
        _check_worker_options(worker_options)
        worker_options["code"] = zips_of(code)
        adapter = _adapter(backend, options)
        temporary = None
        if store is None:
            if backend != EMBEDDED:
                what = f"the backend {backend!r}" if isinstance(backend, str) else "an adapter object"
                raise UsageError(f"{what} needs a store that its jobs can reach: give store= a folder's path or a URL")
            if name is not None:
                raise UsageError(
                    f"name={name!r} makes the executor durable, and that needs a store that is still there when the "
                    "script is run again: give store= a folder's path or a URL, or leave out the name"
                )
            store = temporary = Path(tempfile.mkdtemp(prefix="batchport-store-"))
        try:
            opened = open_store(store)
            if isinstance(opened, FolderStore):
                worker_options.setdefault("path", _own_path())
            worker_name = name or f"run-{secrets.token_hex(4)}"
            waiting = WaitingBytes(opened, worker_name)
            self._run = Run(opened, worker_name) if name is not None else None
            self._loop = WorkerLoop(
                lambda deliver: BatchWorker(adapter, opened, worker_name, deliver, **worker_options),
                waiting,
                run=self._run,
                progress=progress,
                temporary=temporary,
            )
        except BaseException:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._resources = Resources()
        self._key: str | None = None
        self._label = ""
        self._pickler = Pickler(waiting)
        # dask asks for it: how many calls to have running at once.
        self._max_workers: int = worker_options.get("max_jobs", 1000) * worker_options.get("tasks_per_job", 1)
        weakref.finalize(self, self._loop.close).atexit = False  # at exit there is a hook that waits

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[T]:
        """Have `fn(*args, **kwargs)` run as a task and return its future.

        Function and arguments are pickled here, one by one: identity between arguments is lost. Raises
        UsageError if one can't be pickled or, of a durable executor, if an earlier run of the script made
        another call under this key or number; RuntimeError after `shutdown`; and BrokenWorkerError.
        """
        if self._run is None:
            task_id = secrets.token_hex(12)
        else:
            task_id = self._run.next_id(name_of(fn), self._key)
            if self._run.keeps(task_id):
                return self._loop.recall(task_id)
        function = self._pickler.function(fn)
        task = Task(
            id=task_id,
            function=function.blob,
            args=tuple(
                self._pickler.blob(value, f"argument {place} of {function.name}") for place, value in enumerate(args, 1)
            ),
            kwargs={
                key: self._pickler.blob(value, f"argument {key}= of {function.name}") for key, value in kwargs.items()
            }
            or _NO_KEYWORDS,
            resources=self._resources,
            # One string for all calls of a function, since many may wait.
            label=sys.intern(f"{function.name}-{self._label}") if self._label else function.name,
        )
        return self._loop.send(task)

    def map(
        self, fn: Callable[..., T], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[T]:
        """Return an iterator like `map(fn, *iterables)`, whose calls run as tasks, `chunksize` calls in each.

        The iterables are used up at once. Results come in order; TimeoutError is raised if one is not there
        `timeout` seconds after this call. What is still to come is cancelled when the iterator is closed or
        raises. The function is pickled once.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if self._key is not None:
            raise UsageError(
                f"the key {self._key!r} is one call's, and map makes many: submit them one by one, each with its own"
            )
        function: Any = self._pickler.function(fn)
        if chunksize == 1:
            return super().map(function, *iterables, timeout=timeout)
        calls = zip(*iterables, strict=False)
        chunks = iter(lambda: list(itertools.islice(calls, chunksize)), [])
        call_each: Any = Pickled(self._pickler.blob(_make_call_each(), "it"), function.name)
        return _flat(super().map(call_each, itertools.repeat(function), chunks, timeout=timeout))

    def options(self, **asked: Unpack[_Asked]) -> Self:
        """Return this same executor for calls with other options: key, label, and the fields of Resources.

            executor.options(cpus=4, memory_mib=8192).submit(fit, data)

        `key` says which call of a durable executor it is, whichever its number in the script. `label` is for
        people: the names of jobs begin with the function's and it. What is not named stays as it is here.
        Raises UsageError for amounts that can't be; if the backend refuses them, the future fails with
        CONFIGURATION in the backend's words.
        """
        known = ["key", "label", *(field.name for field in fields(Resources))]
        if unknown := [name for name in asked if name not in known]:
            raise UsageError(f"options() has no {unknown[0]!r}; it has: {', '.join(known)}")
        key: object = asked.get("key")
        if not isinstance(key, str | None):
            raise UsageError(f"key={key!r}: a key is a str; write key=str({key!r})")
        view, resources = copy.copy(self), dict[str, Any](asked)
        view._key = resources.pop("key", self._key)  # noqa: SLF001 - its own class
        view._label = resources.pop("label", self._label)  # noqa: SLF001 - likewise
        if view._key is not None and self._run is None:  # noqa: SLF001 - likewise
            raise UsageError(f"key={view._key!r}: only an executor with a name keeps outcomes by key; give it name=")  # noqa: SLF001 - likewise
        view._resources = replace(self._resources, **resources)  # noqa: SLF001 - likewise
        view._original = self  # noqa: SLF001 - likewise
        return view

    _original: BatchExecutor | None = None
    """What `options` was called on; it must not be collected while its view is in use."""

    @property
    def counts(self) -> Counts:
        """What the worker has done so far: tasks, jobs, calls to backend and store. Stays there after shutdown."""
        return self._loop.worker.counts

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - the standard library's signature
        """Take no more calls; with `wait`, return when all work is done and nothing is left behind.

        `cancel_futures` cancels the tasks that do not run yet, as far as is known; to end all of them, cancel
        their futures. May be called again, and from any thread. What a durable executor keeps is removed when all
        work is done.
        """
        self._loop.close(clean=True)
        if cancel_futures:
            for future in self._loop.unfinished():
                if not future.running():
                    future.cancel()
        if wait:
            self._loop.join()

    def detach(self) -> None:
        """Stop here and let the jobs live on, for the script to be run again later and get their outcomes.

        Waits until the backend has the calls for which it has room, a minute at most after the last one that it took;
        the rest is sent when the script is run again. KeyboardInterrupt makes it leave at once. Nothing of this
        executor then runs on this machine any more. Futures that are not done are cancelled, and their tasks
        are not. Raises UsageError if the executor is not durable.
        """
        if self._run is None:
            raise UsageError(
                "detach() needs an executor that is durable, or nobody could find its jobs again; give it name="
            )
        self._loop.detach()

    def forget(self, *calls: TaskFuture[Any] | str) -> None:
        """Forget the outcomes of calls, given by their futures or keys, so that the script's next run makes them anew.

        Without calls it forgets everything that earlier runs have left and cancels the jobs that they left
        and that no call has asked for yet: first in a script, it makes this run the first one. Raises UsageError
        for a call that is under way (without calls: if any is), or if the executor is not durable; RuntimeError after
        `shutdown`; SupersededError or BrokenWorkerError if the script was started again elsewhere; StoreError.
        """
        if self._run is None:
            raise UsageError("forget() needs an executor that is durable; this one keeps nothing, and has no name")
        self._loop.check_open("forget calls")
        pending = {future.task_id for future in self._loop.unfinished()}
        ids = [call.task_id if isinstance(call, TaskFuture) else self._run.id_of(call, pending) for call in calls]
        under_way = [each for each in ids if each is not None and (each in pending or self._run.is_living(each))]
        if under_way:
            raise UsageError("a call that is under way has no outcome to forget: wait for it, or cancel it, first")
        if pending and not calls:
            raise UsageError(f"{len(pending)} calls are under way: wait for them, or cancel them, first")
        if calls:
            self._run.forget([each for each in ids if each is not None])
            return
        for task_id in self._run.begin_anew():
            self._loop.cancel(task_id)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._run is not None and not isinstance(error, KeyboardInterrupt):
            self._loop.detach()
            return
        self._loop.close(clean=error is None)
        if isinstance(error, KeyboardInterrupt):
            self._loop.cancel_all()
        join_or_cancel(self._loop)


def _make_call_each() -> Callable[..., list[Any]]:
    # A function made here is pickled by value, so that the job need not import this module.
    def call_each(function: Callable[..., Any], calls: Iterable[Iterable[Any]]) -> list[Any]:
        return [function(*args) for args in calls]

    return call_each


def _flat(chunks: Iterator[list[T]]) -> Iterator[T]:
    for chunk in chunks:
        yield from chunk


def _check_worker_options(given: Mapping[str, object]) -> None:
    known = [each.name for each in inspect.signature(BatchWorker).parameters.values() if each.kind is each.KEYWORD_ONLY]
    known.remove("hold_adopted")  # this host takes outcomes at any time
    if unknown := [name for name in given if name not in known]:
        raise UsageError(f"BatchExecutor has no option {unknown[0]!r}; the worker's are: {', '.join(known)}")


def _adapter(backend: str | BatchWorkerAdapterBase, options: object) -> BatchWorkerAdapterBase:
    if isinstance(backend, str):
        return make_adapter(backend, options)
    if not isinstance(backend, BatchWorkerAdapterBase):
        raise UsageError(f"backend={backend!r}: give a backend's name, or an adapter (a BatchWorkerAdapterBase)")
    if options is not None:
        raise UsageError("options= goes with a backend's name; an adapter object was made with its own")
    return backend


def _own_path() -> list[str]:
    """Return the entries of sys.path that are not part of the Python installation, absolute and in order."""
    paths = sysconfig.get_paths()
    installed = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    installed += [*site.getsitepackages(), site.getusersitepackages()]
    folders = [Path(each) for each in installed]
    zipped = f"python{sys.version_info.major}{sys.version_info.minor}.zip"
    own = dict.fromkeys(os.path.abspath(entry) for entry in sys.path)  # noqa: PTH100 - Path.absolute() keeps ".."
    return [
        entry
        for entry in own
        if Path(entry).name != zipped and not any(Path(entry).is_relative_to(each) for each in folders)
    ]
