"""Link: the wire between scaler.py and an opengris-scaler scheduler. All that is used of upstream is in here.

To a scheduler, whatever sends it heartbeats is a worker (`on_heartbeat` in scheduler/controllers/worker_controller.py),
so nothing of upstream's own workers and worker managers is needed: only its connections, messages and ids. Their
modules have moved between releases and will again, hence one module. What is said of upstream here and in scaler.py
is of opengris-scaler 2.9.0 (https://pypi.org/project/opengris-scaler/2.9.0/); files are named from its folder
`scaler`.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any, NoReturn

import cloudpickle
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

_BEAT_S = 1.0
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

    scheduler: its address, such as tcp://10.0.0.1:6378. most: how many tasks it may have here at once.

    Made and used on one event loop, where `beat`, `pump` and `receive` must run all the time between `open`
    and `leave`. Every method raises SchedulerLostError when a connection is lost. Raises UsageError where the
    address is none.
    """

    def __init__(self, scheduler: str, name: str, most: int) -> None:
        try:
            self._address = AddressConfig.from_string(scheduler)
        except ValueError as error:
            raise UsageError(f"scheduler={scheduler!r}: {error}; write it like tcp://10.0.0.1:6378") from error
        identity = WorkerID.generate_worker_id(name)
        self._most = most
        self._network = get_network_backend_from_env()
        self._scheduler = self._network.create_async_connector(identity=identity, callback=_unused)
        self._storage = self._network.create_async_object_storage_connector(identity=identity)
        self._heard_at = time.monotonic()
        self._left = False

    async def open(self) -> None:
        """Begin to connect to the scheduler; whether it is there shows later."""
        with self._in_words():
            await self._scheduler.connect(self._address, ConnectorRemoteType.Binder)

    async def beat(self) -> NoReturn:
        """Tell the scheduler every second that this worker lives, and notice when it does not answer any more."""
        self._heard_at = time.monotonic()
        nothing = Resource(cpu=0, rss=0)
        while True:
            if (silence := time.monotonic() - self._heard_at) > _SILENCE_S:
                self._lost(f"it has not answered for {silence:.0f} s")
            heartbeat = WorkerHeartbeat(
                agent=nothing,
                rssFree=0,
                queueSize=self._most,
                queuedTasks=0,
                latencyMicroseconds=0,
                taskLock=False,
                processors=[],
                capabilities=[],
                workerManagerID=b"",
                hostname=socket.gethostname(),
            )
            await self._send(heartbeat, detached=True)
            await asyncio.sleep(_BEAT_S)

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
        # A scheduler that is gone needs no goodbye.
        with suppress(YMQException, TimeoutError):
            async with asyncio.timeout(_LEAVE_S):
                await self._scheduler.send(WorkerDisconnectNotification(), detached=False)
        self._scheduler.destroy()
        self._storage.destroy()
        self._network.destroy()

    async def _on_echo(self, echo: Any) -> None:
        self._heard_at = time.monotonic()
        if not self._storage.is_connected():
            told = echo.objectStorageAddress
            with self._in_words():
                await self._storage.connect(AddressConfig(SocketType(told.scheme), told.host, told.port))

    async def _send(self, message: Any, *, detached: bool = False) -> None:
        # A closed connection takes messages and drops them without a word (`send` in io/ymq_async_connector.py).
        if self._left:
            self._lost("this worker has left it")
        with self._in_words():
            await self._scheduler.send(message, detached=detached)

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except (YMQException, ObjectStorageException) as error:
            self._lost(getattr(error, "message", str(error)), error)

    def _lost(self, why: str, cause: Exception | None = None) -> NoReturn:
        raise SchedulerLostError(
            f"the Scaler scheduler at {self._address} cannot be reached: {why}. Jobs that run live on: start the "
            "worker again under its name once the scheduler is there"
        ) from cause


async def _unused(_message: Any) -> None:
    """Stand for the callback of `AsyncConnector.routine`, which nobody calls: messages come from `receive`."""
