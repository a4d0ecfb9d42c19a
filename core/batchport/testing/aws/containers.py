"""A job as a container of the engine at DOCKER_HOST, on this machine's network. Called by attempts."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from typing import Any

import docker

from batchport.testing.aws.work import NotStartedError

__all__ = ["LABEL", "Container"]

LABEL = "batchport.simulated"
"""The label of every container, so that those which a killed server left can be found."""
DAY_S = 86400


@cache
def _client() -> Any:
    return docker.from_env(timeout=DAY_S, max_pool_size=100)


class Container:
    """One run of a job. Raises NotStartedError if its image is not there or its command cannot be started."""

    def __init__(  # noqa: PLR0913, PLR0917 - a container is made of these
        self, name: str, image: str, command: list[str], env: Mapping[str, str], memory_mib: int, vcpus: float
    ) -> None:
        self._code: int | None = None
        memory = f"{memory_mib}m"
        # https://docs.aws.amazon.com/AmazonECS/latest/developerguide/task_cannot_pull_image.html
        try:
            self._container = _client().containers.create(
                image,
                command,
                name=name,
                environment=dict(env),
                network_mode="host",
                labels={LABEL: name},
                mem_limit=memory,
                memswap_limit=memory,
                cpu_shares=max(2, int(vcpus * 1024)),
            )
        except docker.errors.APIError as error:  # no such image: the engine has no registry to ask
            raise NotStartedError(
                f"CannotPullContainerError: Error response from daemon: {error.explanation}"
            ) from None
        try:
            self._container.start()
        except docker.errors.APIError as error:
            self._container.remove(force=True)
            raise NotStartedError(
                f"CannotStartContainerError: Error response from daemon: {error.explanation}"
            ) from None
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        self._code = self._container.wait()["StatusCode"]

    def exit_code(self) -> int | None:
        """Return the exit code, None while it runs."""
        return self._code

    def out_of_memory(self) -> bool:
        """Return whether it was killed for its memory."""
        self._container.reload()
        return bool(self._container.attrs["State"]["OOMKilled"])

    def terminate(self) -> None:
        """Send SIGTERM to its first process."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill all of it."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(docker.errors.APIError):  # it has ended
            self._container.kill(int(number))

    def output(self) -> Iterator[bytes]:
        """Yield what it prints, as it comes."""
        yield from self._container.logs(stream=True, follow=True)

    def remove(self) -> None:
        """Remove the container."""
        with suppress(docker.errors.NotFound):
            self._container.remove(force=True)
