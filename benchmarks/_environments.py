"""Where peers live: environments of their own, made once in the temporary folder by uv, without batchport.

Called by `_upstream.py` and `_slurm_runs.py`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["MissingPeerError", "python_with"]


class MissingPeerError(Exception):
    """It can't be installed here; the text says why."""


def python_with(peer: str, *pins: str) -> str:
    """Return the Python of the environment named `peer`, which has these pins and what they need.

    Raises MissingPeerError, in words, where that can't be done.
    """
    folder = Path(tempfile.gettempdir(), f"batchport-peer-{os.getuid()}", peer)
    python, complete = folder / "bin" / "python", folder / "complete"
    wanted = "\n".join(pins)
    if complete.exists() and complete.read_text("utf-8") == wanted:
        return str(python)
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if uv is None:
        raise MissingPeerError("there is no uv to install it with")
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    # --no-config, or this project's pins would be the peer's too.
    quiet = ("--no-config", "--quiet", "--python")
    make = (uv, "venv", "--clear", *quiet, sys.executable, str(folder))
    install = (uv, "pip", "install", "--compile-bytecode", *quiet, str(python), *pins)
    for command in (make, install):
        done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            words = " ".join(done.stderr.split()) or "no words"
            raise MissingPeerError(f"it can't be installed: {words[:200]}")
    complete.write_text(wanted, "utf-8")
    return str(python)
