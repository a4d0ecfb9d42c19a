"""A job as processes of this machine, where no container engine is there: the image is ignored, so are vCPUs.

Called by attempts. As in a container SIGTERM goes to the first process alone, and the others end with it, also those
that left its session: they are known by the job's own variables, on Linux. Memory is looked at some times a second.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from batchport.testing.aws.work import NotStartedError

__all__ = ["Processes"]

KEPT = ("PATH", "HOME", "LANG", "VIRTUAL_ENV", "SSL_CERT_FILE")
"""What a job has of the server's environment: as much as an image would bring."""
LOOK_S = 0.2
CHUNK = 65536


class Processes:
    """One run of a job. Raises NotStartedError if its command cannot be started."""

    def __init__(self, name: str, command: list[str], env: Mapping[str, str], memory_mib: int) -> None:
        self._mark = f"BATCHPORT_SIMULATED={name}".encode()
        self._memory = memory_mib << 20
        self._over, self._look_at = False, 0.0
        self._folder = tempfile.TemporaryDirectory(prefix="batchport-aws-", ignore_cleanup_errors=True)
        own = {key: os.environ[key] for key in KEPT if key in os.environ} | {"BATCHPORT_SIMULATED": name}
        try:
            self._first = subprocess.Popen(
                command,
                env=own | dict(env),
                cwd=self._folder.name,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        except (OSError, IndexError) as error:
            self._folder.cleanup()
            raise NotStartedError(f"CannotStartContainerError: Error response from daemon: {error}") from None

    def exit_code(self) -> int | None:
        """Return the exit code as a container's, None while it runs."""
        code = self._first.poll()
        if code is None and time.monotonic() > self._look_at:
            self._look_at = time.monotonic() + LOOK_S
            if _resident(self._first.pid) > self._memory:
                self._over = True
                self.kill()
        return 128 - code if code is not None and code < 0 else code

    def out_of_memory(self) -> bool:
        """Return whether it was killed for its memory."""
        return self._over

    def terminate(self) -> None:
        """Send SIGTERM to the first process."""
        if self._first.poll() is None:
            self._first.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill every process of the job."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._first.pid, signal.SIGKILL)
        for pid in self._others():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def output(self) -> Iterator[bytes]:
        """Yield what it prints, as it comes."""
        pipe = self._first.stdout
        assert pipe is not None
        while chunk := os.read(pipe.fileno(), CHUNK):
            yield chunk

    def remove(self) -> None:
        """Let go of what it held."""
        self.kill()
        self._first.wait()
        if self._first.stdout:
            self._first.stdout.close()
        self._folder.cleanup()

    def _others(self) -> list[int]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if self._mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return found


def _resident(pid: int) -> int:
    """Return the bytes in memory of a process and all below it, what they share counted once; 0 without /proc.

    https://www.kernel.org/doc/html/latest/filesystems/proc.html, smaps_rollup
    """
    process = Path(f"/proc/{pid}")
    try:
        rollup = (process / "smaps_rollup").read_text("ascii")
        children = " ".join(each.read_text("ascii") for each in process.glob("task/*/children")).split()
    except OSError:
        return 0
    own = next((int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0) * 1024
    return own + sum(_resident(int(child)) for child in children)
