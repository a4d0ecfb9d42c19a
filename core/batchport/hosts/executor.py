"""BatchExecutor: a `concurrent.futures.Executor` whose calls run as tasks on a batch backend.

Called by users. It pickles calls and hands them to a worker (`_loop.py`); the outcomes come back in
TaskFutures (`futures.py`).
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import itertools
import os
import secrets
import shutil
import site
import sys
import sysconfig
import tempfile
import threading
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, ParamSpec, Self, TypedDict, TypeVar, Unpack

import cloudpickle

from batchport.adapter import BatchWorkerAdapterBase
from batchport.backends import EMBEDDED, make_adapter
from batchport.errors import UsageError
from batchport.hosts._loop import BrokenWorkerError, WorkerLoop, join_or_cancel
from batchport.hosts.futures import RemoteTraceback, TaskFuture
from batchport.jobs import Resources
from batchport.store import FolderStore, open_store
from batchport.tasks import Blob, Task
from batchport.worker import BatchWorker, Counts

__all__ = ["BatchExecutor", "BrokenWorkerError", "RemoteTraceback", "TaskFuture"]

P = ParamSpec("P")
T = TypeVar("T")


class _Asked(TypedDict, total=False):
    """The fields of Resources, as keywords."""

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
    name: the worker's; no two may run under one name on one store. None: a new one.
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
    """

    def __init__(
        self,
        backend: str | BatchWorkerAdapterBase,
        store: str | os.PathLike[str] | None = None,
        *,
        name: str | None = None,
        options: object = None,
        progress: bool = False,
        **worker_options: Any,
    ) -> None:
        _check_worker_options(worker_options)
        adapter = _adapter(backend, options)
        temporary = None
        if store is None:
            if backend != EMBEDDED:
                what = f"the backend {backend!r}" if isinstance(backend, str) else "an adapter object"
                raise UsageError(f"{what} needs a store that its jobs can reach: give store= a folder's path or a URL")
            store = temporary = Path(tempfile.mkdtemp(prefix="batchport-store-"))
        try:
            opened = open_store(store)
            if isinstance(opened, FolderStore):
                worker_options.setdefault("path", _own_path())
            worker_name = name or f"run-{secrets.token_hex(4)}"
            self._loop = WorkerLoop(
                lambda deliver: BatchWorker(adapter, opened, worker_name, deliver, **worker_options),
                progress=progress,
                temporary=temporary,
            )
        except BaseException:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._resources = Resources()
        self._pickler = _Pickler()
        # dask asks for it: how many calls to have running at once.
        self._max_workers: int = worker_options.get("max_jobs", 1000) * worker_options.get("tasks_per_job", 1)
        weakref.finalize(self, self._loop.close).atexit = False  # at exit there is a hook that waits

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[T]:
        """Have `fn(*args, **kwargs)` run as a task and return its future.

        Function and arguments are pickled here, one by one: identity between arguments is lost. Raises
        UsageError if one can't be pickled, RuntimeError after `shutdown`, and BrokenWorkerError.
        """
        function = self._pickler.function(fn)
        task = Task(
            id=uuid.uuid4().hex,
            function=function.blob,
            args=tuple(
                self._pickler.blob(value, f"argument {place} of {function.name}") for place, value in enumerate(args, 1)
            ),
            kwargs={
                key: self._pickler.blob(value, f"argument {key}= of {function.name}") for key, value in kwargs.items()
            },
            resources=self._resources,
            label=function.name,
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
        function: Any = self._pickler.function(fn)
        if chunksize == 1:
            return super().map(function, *iterables, timeout=timeout)
        calls = zip(*iterables, strict=False)
        chunks = iter(lambda: list(itertools.islice(calls, chunksize)), [])
        call_each: Any = _Pickled(self._pickler.blob(_make_call_each(), "it"), function.name)
        return _flat(super().map(call_each, itertools.repeat(function), chunks, timeout=timeout))

    def options(self, **resources: Unpack[_Asked]) -> Self:
        """Return this same executor for calls that ask for other resources: the fields of Resources.

            executor.options(cpus=4, memory_mib=8192).submit(fit, data)

        What is not named stays as it is here. Raises UsageError for amounts that can't be; if the backend
        refuses them, the future fails with CONFIGURATION in the backend's words.
        """
        known = [field.name for field in fields(Resources)]
        if unknown := [name for name in resources if name not in known]:
            raise UsageError(f"options() has no {unknown[0]!r}; it has: {', '.join(known)}")
        view = copy.copy(self)
        view._resources = replace(self._resources, **resources)  # noqa: SLF001 - its own class
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
        their futures. May be called again, and from any thread.
        """
        self._loop.close()
        if cancel_futures:
            for future in self._loop.unfinished():
                if not future.running():
                    future.cancel()
        if wait:
            self._loop.join()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.close()
        if isinstance(error, KeyboardInterrupt):
            self._loop.cancel_all()
        join_or_cancel(self._loop)


class _Pickled(NamedTuple):
    """A function that is pickled already, and its name, for people."""

    blob: Blob
    name: str


class _Pickler:
    """Makes blobs of objects; equal large ones are in memory once, however many waiting tasks share them."""

    _LARGE = 16 << 10

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._large: weakref.WeakValueDictionary[str, _Bytes] = weakref.WeakValueDictionary()

    def function(self, function: Callable[..., Any] | _Pickled) -> _Pickled:
        """Pickle a function, unless it is done already. Raises UsageError."""
        if isinstance(function, _Pickled):
            return function
        # A partial has no name, and its function has.
        named = getattr(function, "func", function)
        name = str(getattr(named, "__name__", type(named).__name__))
        return _Pickled(self.blob(function, f"the function {name}"), name)

    def blob(self, value: object, what: str) -> Blob:
        """Pickle one object, unless it is done already. Raises UsageError, naming it as `what`."""
        if isinstance(value, _Pickled):
            return value.blob
        try:
            data = cloudpickle.dumps(value)
        except Exception as error:
            kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
            raise UsageError(
                f"{what} (a {kind}) cannot be pickled: {error}. "
                "Make it inside the function, or pass what it is made from"
            ) from error
        if len(data) < self._LARGE:
            return Blob.of(data)
        key = hashlib.sha256(data).hexdigest()
        with self._lock:
            held = self._large.setdefault(key, _Bytes(data))
        return Blob(key, len(data), held.read)


class _Bytes:
    """Bytes that can be referred to weakly."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def read(self) -> bytes:
        return self._data


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
