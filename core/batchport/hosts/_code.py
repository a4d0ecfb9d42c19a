"""Modules and folders as zips, for jobs in which they are not installed.

Called by executor.py for its option `code`, and by the command `batchport worker`. Equal content makes equal bytes, so
that a zip is stored once.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

from batchport.errors import UsageError
from batchport.tasks import Blob

__all__ = ["zips_of"]


def zips_of(code: object) -> list[Blob]:
    """Return a zip for each module or folder, to be put on a job's sys.path in this order.

    Raises UsageError for anything else, and for what can't be read.
    """
    if not isinstance(code, Iterable) or isinstance(code, str | os.PathLike):
        raise UsageError(f"code={code!r}: give a list of modules and folders, such as code=[{_shown(code)}]")
    return [Blob.of(_zip(each)) for each in code]


def _zip(code: object) -> bytes:
    files = _files_of_module(code) if isinstance(code, ModuleType) else _files_of_folder(code)
    buffer = io.BytesIO()
    try:
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, path in sorted(files.items()):
                entry = zipfile.ZipInfo(name)  # of 1980, whatever the file's own time
                entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
                archive.writestr(entry, path.read_bytes())
    except OSError as error:
        raise UsageError(f"code=[{_shown(code)}]: can't read {error.filename}: {error.strerror}") from error
    return buffer.getvalue()


def _files_of_module(module: ModuleType) -> dict[str, Path]:
    name = module.__name__
    if "." in name:
        top = name.partition(".")[0]
        raise UsageError(f"code=[{name}]: give the whole package that it is part of: code=[{top}]")
    if folders := list(getattr(module, "__path__", ())):
        return {f"{name}/{inner}": path for folder in folders for inner, path in _walk(Path(folder))}
    if (file := getattr(module, "__file__", None)) is None or not Path(file).is_file():
        raise UsageError(
            f"code=[{name}]: this module is part of Python itself, or in no file that could be taken along"
        )
    return {Path(file).name: Path(file)}


def _files_of_folder(code: object) -> dict[str, Path]:
    folder = Path(code) if isinstance(code, str | os.PathLike) else None
    if folder is None or not folder.is_dir():
        what = "there is no such folder" if folder is not None else f"an object of type {type(code).__name__}"
        raise UsageError(f"code=[{_shown(code)}]: {what}; give an imported module, or a folder that holds modules")
    # A folder that is a package must be imported by its own name.
    prefix = f"{folder.resolve().name}/" if (folder / "__init__.py").is_file() else ""
    return {f"{prefix}{name}": path for name, path in _walk(folder)}


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    for root, folders, names in os.walk(folder):
        folders[:] = [each for each in folders if each != "__pycache__" and not each.startswith(".")]
        for name in names:
            path = Path(root, name)
            if path.suffix != ".pyc" and not name.startswith(".") and path.is_file():
                yield path.relative_to(folder).as_posix(), path


def _shown(code: object) -> str:
    return (
        code.__name__
        if isinstance(code, ModuleType)
        else repr(os.fspath(code) if isinstance(code, os.PathLike) else code)
    )
