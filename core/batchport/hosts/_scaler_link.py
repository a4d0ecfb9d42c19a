"""Link: the wire between scaler.py and an opengris-scaler scheduler. All that is used of upstream is in here.

To a scheduler, whatever sends it heartbeats is a worker (`on_heartbeat` in scheduler/controllers/worker_controller.py),
so nothing of upstream's own workers and worker managers is needed: only its connections, messages and ids. Modules of
upstream's have moved between releases and will again, hence one module; tests/hosts/test_scaler_link.py says which
name is gone. What is said of upstream here and in scaler.py is of opengris-scaler 2.9.0
(https://pypi.org/project/opengris-scaler/2.9.0/), and holds for 2.8.0 unless a line says otherwise; files are named
from its folder `scaler`.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import pickle
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any, NoReturn

import cloudpickle
import psutil
from scaler.client.serializer.default import DefaultSerializer
from scaler.config.types.address import AddressConfig, SocketType
from scaler.io.mixins import ConnectorRemoteType
from scaler.io.network_backends import get_network_backend_from_env
from scaler.io.ymq import YMQException
from scaler.protocol.capnp import (
    ClientDisconnect,
    ObjectInstruction,
    ObjectMetadata,
    Resource,
    Task,
    TaskCancel,
    TaskCancelConfirm,
    TaskCancelConfirmType,
    TaskCapability,
    TaskResult,
    TaskResultType,
    WorkerDisconnectNotification,
    WorkerHeartbeat,
    WorkerHeartbeatEcho,
)
from scaler.utility.exceptions import ObjectStorageException
from scaler.utility.identifiers import ClientID, ObjectID, WorkerID

from batchport.errors import BatchportError, UsageError

__all__ = ["PLAIN_SERIALIZERS", "Cancel", "Confirm", "Deletion", "Link", "Offer", "SchedulerLostError", "ShutdownError"]

PLAIN_SERIALIZERS = frozenset(
    cloudpickle.dumps(each, pickle.HIGHEST_PROTOCOL) for each in (DefaultSerializer(), DefaultSerializer)
)
"""How a client announces that its objects are cloudpickle's plain bytes, both ways: as the pickle of the serializer
that it has unless it was given another (`__construct_serializer` in client/object_buffer.py)."""

_log = logging.getLogger("batchport.scaler")

_ANY_AMOUNT = -1
"""How a worker says that it has as much of a capability as is asked for; schedulers ignore other amounts (`add_worker`
in scheduler/controllers/policies/simple_policy/allocation/capability_allocate_policy.py)."""

_TIME = re.compile(r"[-0-9]+ [:0-9]+\+0000: ")
"""What begins the words of upstream's connectors."""
_STORAGE = "object storage of the "
"""What is lost, ahead of the scheduler's name."""
_BEAT_S = 1.0
_UNREACHED_S = 20.0
"""Seconds without any answer after which there is no scheduler at the address."""
_HURRY_S = 3.0
"""Seconds without any answer after which the user is told."""
_NOT_YET = "the %sScaler scheduler at %s has not answered yet (%s); it is waited for"
_SILENCE_S = 60.0
"""Seconds without an answer after which the scheduler is lost; it gives up workers after as many
(DEFAULT_WORKER_TIMEOUT_SECONDS in config/defaults.py)."""
_LEAVE_S = 5.0


class SchedulerLostError(BatchportError):
    """The Scaler scheduler, or its object storage, cannot be reached, or not any more."""


class ShutdownError(BatchportError):
    """A client has shut down the whole cluster."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A task that the scheduler has given to this worker. Ids of objects have 32 bytes and are never used again."""

    task_id: str
    client: bytes
    function: bytes
    args: tuple[bytes, ...]

    @property
    def serializer(self) -> bytes:
        """The id of the object that holds the client's serializer."""
        return bytes(ObjectID.generate_serializer_object_id(ClientID(self.client)))


@dataclass(frozen=True, slots=True)
class Cancel:
    """A request to cancel a task. Forced: a client wants it; otherwise another worker has nothing to do."""

    task_id: str
    forced: bool


@dataclass(frozen=True, slots=True)
class Deletion:
    """Word that these objects are removed."""

    object_ids: tuple[bytes, ...]


class Confirm(Enum):
    """The answers to a Cancel."""

    CANCELLED = TaskCancelConfirmType.canceled
    """To a client's: it is told so. To an unforced one: the task is offered to a worker again, perhaps to this one."""
    REFUSED = TaskCancelConfirmType.cancelFailed
    """The task's result follows."""
    UNKNOWN = TaskCancelConfirmType.cancelNotFound
    """There is no such task here."""


class Link:
    """One worker's connections: to the scheduler, and to the object storage that the scheduler names.

    scheduler: its address, such as tcp://10.0.0.1:6378. name: the worker's; place: where its jobs' records are. A
    link of the same name and place on this host takes the place of one whose process died. most: how many tasks it
    may have here at once. capabilities: what tasks may ask of a worker that this one has.

    Used on one event loop, where `beat`, `pump` and `receive` must run all the time between `open`
    and `leave`. Every method raises SchedulerLostError when a connection is lost. Raises UsageError where the
    address is none.
    """

    def __init__(self, scheduler: str, name: str, place: str, most: int, capabilities: Sequence[str] = ()) -> None:
        try:
            self._address = AddressConfig.from_string(scheduler)
        except ValueError as error:
            raise UsageError(f"scheduler={scheduler!r} is no address; write it like tcp://10.0.0.1:6378") from error
        # Not of this process alone: the scheduler shall know again whose tasks it has. Not of the name alone: two
        # workers of one name that share nothing must not be one to the scheduler.
        tag = hashlib.sha256(f"{socket.gethostname()} {place}".encode()).hexdigest()[:16]
        self._identity = WorkerID(f"Worker|{name}|{tag}".encode())
        self._most, self._capabilities = most, tuple(capabilities)
        self._process = psutil.Process()
        self._heard_at: float | None = None
        self._beat_at: float | None = None
        self._latency_s = 0.0
        self._left = False
        self._network: Any = None

    async def open(self) -> None:
        """Connect to the scheduler; whether it is one shows later.

        The scheduler is told first that an earlier process of this worker is gone, so that it gives the tasks of that
        one out anew now and not when it misses it, a minute later.
        """
        self._network = get_network_backend_from_env()
        self._scheduler = self._network.create_async_connector(identity=self._identity, callback=_unused)
        self._storage = self._network.create_async_object_storage_connector(identity=self._identity)
        address = await self._reach(self._address)
        with self._in_words():
            await self._scheduler.connect(address, ConnectorRemoteType.Binder)
        await self._send(WorkerDisconnectNotification(), detached=True)

    async def _reach(self, address: AddressConfig, what: str = "") -> AddressConfig:
        """Return an address as upstream's connectors bear it, once something listens there.

        They take no names of hosts, and where nothing listens they block the event loop for 50 s. `what` is of the
        scheduler's, and at an address of its own.
        """
        if not address.port:  # a socket of this machine's
            return address
        began, told = time.monotonic(), False
        while True:
            try:
                async with asyncio.timeout(_UNREACHED_S):
                    _, writer = await asyncio.open_connection(address.host, address.port, family=socket.AF_INET)
            except (OSError, TimeoutError) as error:
                number = error.errno or 0  # negative where a name is not known, and then with words of its own
                why = os.strerror(number) if number > 0 else error.strerror or "no answer"
            else:
                found = writer.get_extra_info("peername")[0]
                writer.close()
                return AddressConfig(address.type, found, address.port) if address.type is SocketType.tcp else address
            waited = time.monotonic() - began
            if waited > _UNREACHED_S:
                where = f" at {address}" if what else ""
                self._lost(f"{why}{where}, for {waited:.0f} s", what=what)
            if not told and waited > _HURRY_S:
                told = True
                _log.warning(_NOT_YET, what, address, why)
            await asyncio.sleep(_BEAT_S / 2)

    async def beat(self, queued: Callable[[], int]) -> NoReturn:
        """Tell the scheduler every second that this worker lives, and notice when it does not answer (any more).

        `queued` says how many of the tasks that are here are in no job yet.
        """
        began, told = time.monotonic(), False
        while True:
            now = time.monotonic()
            if self._heard_at is None:
                if not told and now - began > _HURRY_S:
                    told = True
                    _log.warning(_NOT_YET, "", self._address, "though something listens there")
                if now - began > _UNREACHED_S:
                    self._lost(
                        f"what listens there has not answered for {now - began:.0f} s, so it may be something else"
                    )
            elif now - self._heard_at > _SILENCE_S:
                self._lost(f"it has not answered for {now - self._heard_at:.0f} s")
            self._beat_at = self._beat_at or now
            await self._send(self._heartbeat(queued()), detached=True)
            await asyncio.sleep(_BEAT_S)

    def _heartbeat(self, queued: int) -> WorkerHeartbeat:
        memory, latency = psutil.virtual_memory(), int(self._latency_s * 1e6)
        return WorkerHeartbeat(
            agent=Resource(cpu=int(self._process.cpu_percent() * 10), rss=self._process.memory_info().rss),
            rssFree=memory.available,
            memLimit=memory.total,
            queueSize=self._most,
            queuedTasks=queued,
            taskLock=False,
            processors=[],
            capabilities=[TaskCapability(name=name, value=_ANY_AMOUNT) for name in self._capabilities],
            workerManagerID=b"",
            # A message leaves out what its release does not know: these three are of 2.9.0, of 2.8.0, and of 2.9.0.
            latencyMicroseconds=latency,
            latencyUS=latency,
            hostname=socket.gethostname(),
        )

    @property
    def is_heard(self) -> bool:
        """Whether the scheduler has answered yet."""
        return self._heard_at is not None

    async def pump(self) -> NoReturn:
        """Bring answers of the object storage to whoever waits for them."""
        while True:
            with self._in_words():
                await self._storage.routine()

    async def receive(self) -> Offer | Cancel | Deletion:
        """Wait for a message from the scheduler. Raises ShutdownError."""
        while True:
            with self._in_words():
                message = await self._scheduler.receive()
            match message:
                case WorkerHeartbeatEcho():
                    await self._on_echo(message)
                case Task():
                    # Arguments that are other tasks' results have become objects before a task is sent.
                    args = tuple(bytes(each.data) for each in message.functionArgs)
                    return Offer(bytes(message.taskId).hex(), bytes(message.source), bytes(message.funcObjectId), args)
                case TaskCancel():
                    return Cancel(bytes(message.taskId).hex(), bool(message.flags.force))
                case ObjectInstruction():
                    # A worker gets deletions only (__routine_send_objects_deletions in object_controller.py).
                    return Deletion(tuple(bytes(each) for each in message.objectMetadata.objectIds))
                case ClientDisconnect():
                    raise ShutdownError
                case _:
                    pass

    async def get(self, object_id: bytes) -> bytes:
        """Return an object's bytes; waits, for ever perhaps, while there is no such object.

        Must not be cancelled while the link is used: a cancelled request breaks `pump`.
        """
        with self._in_words():
            await self._storage.wait_until_connected()
            return bytes(await self._storage.get_object(ObjectID(object_id)))

    async def answer(self, offer: Offer, data: bytes, *, ok: bool) -> None:
        """Send a task's result, or its pickled exception; the client unpickles it.

        Must not be cancelled while the link is used: the object storage would take what comes next for the rest.
        """
        object_id = ObjectID.generate_object_id(ClientID(offer.client))
        kind = ObjectMetadata.ObjectContentType.object
        metadata = ObjectMetadata(
            objectIds=(object_id,), objectTypes=(kind,), objectNames=(b"result",), objectSizes=(len(data),)
        )
        result = TaskResult(
            taskId=bytes.fromhex(offer.task_id),
            resultType=TaskResultType.success if ok else TaskResultType.failed,
            metadata=b"",
            results=[bytes(object_id)],
        )
        with self._in_words():
            await self._storage.wait_until_connected()
            await self._storage.set_object(object_id, data)
        create = ObjectInstruction.ObjectInstructionType.create
        await self._send(ObjectInstruction(instructionType=create, objectUser=offer.client, objectMetadata=metadata))
        await self._send(result)

    async def confirm(self, task_id: str, how: Confirm) -> None:
        """Answer a Cancel."""
        await self._send(TaskCancelConfirm(taskId=bytes.fromhex(task_id), cancelConfirmType=how.value))

    async def leave(self) -> None:
        """Say that this worker leaves, so that its tasks are given to others at once, and close the connections."""
        self._left = True
        if self._network is None:
            return
        # A scheduler that is gone needs no goodbye.
        with suppress(YMQException, TimeoutError):
            async with asyncio.timeout(_LEAVE_S):
                await self._scheduler.send(WorkerDisconnectNotification(), detached=False)
        self._scheduler.destroy()
        self._storage.destroy()
        self._network.destroy()

    async def _on_echo(self, echo: Any) -> None:
        now = time.monotonic()
        if self._heard_at is None:
            _log.info("the Scaler scheduler at %s has answered", self._address)
        self._heard_at = now
        if self._beat_at is not None:
            self._latency_s, self._beat_at = (now - self._beat_at) / 2, None
        if not self._storage.is_connected():
            told = echo.objectStorageAddress
            address = await self._reach(AddressConfig(SocketType(told.scheme), told.host, told.port), _STORAGE)
            with self._in_words(_STORAGE):
                await self._storage.connect(address)

    async def _send(self, message: Any, *, detached: bool = False) -> None:
        # A closed connection takes messages and drops them without a word (`send` in io/ymq_async_connector.py).
        if self._left:
            self._lost("this worker has left it")
        with self._in_words():
            await self._scheduler.send(message, detached=detached)

    @contextmanager
    def _in_words(self, what: str = "") -> Iterator[None]:
        try:
            yield
        except ObjectStorageException as error:
            self._lost(str(error), error, _STORAGE)
        except YMQException as error:
            self._lost(_TIME.sub("", error.message), error, what)

    def _lost(self, why: str, cause: Exception | None = None, what: str = "") -> NoReturn:
        raise SchedulerLostError(
            f"the {what}Scaler scheduler at {self._address} cannot be reached: {why.rstrip('.')}. "
            "Jobs that run live on: start the worker again under its name once it is there"
        ) from cause


async def _unused(_message: Any) -> None:
    """Stand for the callback of `AsyncConnector.routine`, which nobody calls: messages come from `receive`."""
