"""The object store that worker and jobs share: a URL becomes a Store, and Keys names every key in it.

Called by the worker, the runner and hosts. A folder is read and written with the standard library
alone, so that a job on a shared file system imports nothing else; every other URL goes to obstore. All
methods block: callers with an event loop run them in a thread.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from batchport.errors import StoreError, UsageError

__all__ = ["NO_STORE", "FolderStore", "Keys", "ObjectStore", "OutKey", "Store", "open_store"]

NO_STORE = 74
"""The exit code of a runner that can't use its store, and so can leave no evidence there (EX_IOERR).
https://man.freebsd.org/cgi/man.cgi?query=sysexits&sektion=3"""

_SAFE = "/:.,@=+-_"
_SCHEMES = ("s3", "gs", "az", "memory")


class Store(ABC):
    """An object store. `url` opens it again, in any process that can reach it; `calls` counts by method."""

    url: str

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    @abstractmethod
    def put(self, key: str, data: bytes, *, create: bool = False) -> bool:
        """Write an object whole or not at all; with `create`, only if there is none, else return False.

        False may be the echo of this very write, whose answer was lost on the way and which was tried
        again: a writer to whom that matters reads back. Raises StoreError.
        """

    @abstractmethod
    def get(self, key: str) -> bytes | None:
        """Return an object's bytes, None if there is no such object. Raises StoreError."""

    @abstractmethod
    def get_range(self, key: str, start: int, length: int) -> bytes | None:
        """Return `length` bytes of an object from `start`, fewer where it ends; None if there is no such object.

        Raises StoreError.
        """

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Return whether there is such an object. Raises StoreError."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """Return the names of the objects in `folder`, which holds no folders, unsorted. Raises StoreError."""

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Remove these objects; one that is not there is as good as removed. Raises StoreError."""


def open_store(url: str | os.PathLike[str]) -> Store:
    """Return the store at `url`: a path, file://, s3://, gs://, az://, or memory:// within one process.

    Credentials and endpoints come from the environment, by the provider's own variables; for s3:// without
    AWS_ACCESS_KEY_ID from AWS's files and AWS_PROFILE, too, where boto3 is installed. An AWS_ENDPOINT_URL that begins
    with http:// is spoken to in the clear unless AWS_ALLOW_HTTP is false. Raises UsageError for a URL of no known
    kind, and for a profile that is not there; does not touch the store otherwise.
    """
    text = os.fspath(url)
    parts = urlsplit(text)
    if parts.scheme == "file" and parts.netloc not in {"", "localhost"}:
        message = f"{text!r} names a host, {parts.netloc}; a folder's URL has three slashes: file:///{parts.netloc}{parts.path}"
        raise UsageError(message)
    if not parts.scheme or parts.scheme == "file":
        return FolderStore(Path(unquote(parts.path) if parts.scheme else text))
    if parts.scheme in _SCHEMES:
        return ObjectStore(text)
    known = ", ".join(f"{scheme}://" for scheme in ("file", *_SCHEMES))
    message = f"no store is known for {text!r}; give a folder's path or a URL that begins with one of {known}"
    raise UsageError(message)


class FolderStore(Store):
    """A folder, local or shared. New folders get mode 0700 and files 0600, whatever the umask."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root.absolute()
        # "~" would need no quotes in a URL, but does in a script.
        self.url = "file://" + quote(str(self.root), safe=_SAFE).replace("~", "%7E")

    def put(self, key: str, data: bytes, *, create: bool = False) -> bool:
        self.calls["put"] += 1
        target = self.root / key
        # In the target's own folder, since a rename or link must not cross file systems; a name that
        # begins with a dot is never listed, so a writer that was killed leaves nothing that counts.
        draft = target.parent / f".{os.urandom(8).hex()}"
        try:
            try:
                self._write(draft, data)
            except FileNotFoundError:
                self._make_folders(target.parent)
                self._write(draft, data)
            try:
                if create:
                    os.link(draft, target)
                else:
                    draft.replace(target)
            except FileExistsError:
                # Over NFS the answer to a link that worked can be lost and the link sent again.
                return draft.stat().st_nlink > 1
            finally:
                draft.unlink(missing_ok=True)
        except OSError as error:
            raise self._error("write", key, error) from error
        return True

    def get(self, key: str) -> bytes | None:
        self.calls["get"] += 1
        try:
            return (self.root / key).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._error("read", key, error) from error

    def get_range(self, key: str, start: int, length: int) -> bytes | None:
        self.calls["get"] += 1
        try:
            with (self.root / key).open("rb") as file:
                file.seek(start)
                return file.read(length)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._error("read", key, error) from error

    def exists(self, key: str) -> bool:
        self.calls["exists"] += 1
        try:
            (self.root / key).stat()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._error("read", key, error) from error
        return True

    def names(self, folder: str) -> list[str]:
        self.calls["list"] += 1
        try:
            return [name for name in os.listdir(self.root / folder) if not name.startswith(".")]  # noqa: PTH208 - names, not paths: a third of the time
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._error("list", folder, error) from error

    def delete(self, keys: Iterable[str]) -> None:
        self.calls["delete"] += 1
        for key in keys:
            try:
                (self.root / key).unlink(missing_ok=True)
            except OSError as error:
                raise self._error("delete", key, error) from error

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
        except FileNotFoundError:
            raise
        except OSError:
            path.unlink(missing_ok=True)
            raise

    def _make_folders(self, folder: Path) -> None:
        for each in reversed([folder, *folder.parents]):
            if not each.exists():
                each.mkdir(mode=0o700, exist_ok=True)

    def _error(self, what: str, key: str, error: OSError) -> StoreError:
        return StoreError(f"the store {self.root} cannot {what} {key or 'its root'}: {error.strerror}")


class ObjectStore(Store):
    """An object store by obstore: S3, GCS, Azure, or memory shared by all who name it in this process."""

    # One MemoryStore a URL, since a second one of the same URL would be empty.
    _memories: dict[str, Any] = {}  # noqa: RUF012 - shared on purpose

    def __init__(self, url: str) -> None:
        super().__init__()
        from obstore import exceptions, store  # a job on a folder store must not pay for it

        self.url = url.rstrip("/")
        self._base_error, self._exists_error = exceptions.BaseError, exceptions.AlreadyExistsError
        if urlsplit(url).scheme == "memory":
            self._store: Any = self._memories.setdefault(self.url, store.MemoryStore())
            return
        try:
            # Without these two, an address that swallows packets takes three minutes to fail.
            self._store = store.from_url(
                self.url,
                client_options={"timeout": "30s", "connect_timeout": "5s", "allow_http": _plain_http()},
                retry_config={"max_retries": 4, "retry_timeout": _minute()},
                **(_from_files_of_aws() if self.url.startswith("s3:") else {}),
            )
        except (exceptions.BaseError, ValueError) as error:
            message = f"the store {url} cannot be opened: {_in_a_line(error)}"
            raise UsageError(message) from error

    def put(self, key: str, data: bytes, *, create: bool = False) -> bool:
        self.calls["put"] += 1
        try:
            self._store.put(key, data, mode="create" if create else "overwrite")
        except self._exists_error:
            return False
        except (self._base_error, OSError) as error:
            raise self._error("write", key, error) from error
        return True

    def get(self, key: str) -> bytes | None:
        self.calls["get"] += 1
        try:
            return bytes(self._store.get(key).bytes())
        except FileNotFoundError:
            return None
        except (self._base_error, OSError) as error:
            raise self._error("read", key, error) from error

    def get_range(self, key: str, start: int, length: int) -> bytes | None:
        self.calls["get"] += 1
        try:
            return bytes(self._store.get_range(key, start=start, length=length))
        except FileNotFoundError:
            return None
        except (self._base_error, OSError) as error:
            raise self._error("read", key, error) from error

    def exists(self, key: str) -> bool:
        self.calls["exists"] += 1
        try:
            self._store.head(key)
        except FileNotFoundError:
            return False
        except (self._base_error, OSError) as error:
            raise self._error("read", key, error) from error
        return True

    def names(self, folder: str) -> list[str]:
        self.calls["list"] += 1
        try:
            return [
                meta["path"].rpartition("/")[2] for page in self._store.list(folder, chunk_size=1000) for meta in page
            ]
        except (self._base_error, OSError) as error:
            raise self._error("list", folder, error) from error

    def delete(self, keys: Iterable[str]) -> None:
        self.calls["delete"] += 1
        try:
            if listed := list(keys):
                self._store.delete(listed)
        except (self._base_error, OSError) as error:
            raise self._error("delete", "objects", error) from error

    def _error(self, what: str, key: str, error: Exception) -> StoreError:
        return StoreError(f"the store {self.url} cannot {what} {key}: {_in_a_line(error)}")


def _plain_http() -> bool:
    """Return whether a server may be spoken to in the clear: as AWS_ALLOW_HTTP says, else if the endpoint is http://.

    obstore reads AWS_ALLOW_HTTP by itself, and forgets it when it is given other options of a client. boto3 knows no
    such variable and goes by the endpoint.
    """
    allowed = os.environ.get("AWS_ALLOW_HTTP")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    return allowed.lower() in {"1", "true", "yes", "on"} if allowed else endpoint.startswith("http://")


def _from_files_of_aws() -> dict[str, Any]:
    """Return what gives obstore the credentials and the region of ~/.aws or a profile, and renews them.

    obstore reads variables and asks for the roles of machines and containers, and boto3 reads those files and signs
    on (https://developmentseed.org/obstore/latest/authentication/). In a job there are no such files, and boto3, which
    takes a quarter of a second to import, is left alone.
    """
    files = {"AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials", "AWS_CONFIG_FILE": "~/.aws/config"}
    # Path.expanduser raises where there is no home, as in a container with a user of its own.
    found = (os.path.exists(os.path.expanduser(os.environ.get(each, files[each]))) for each in files)  # noqa: PTH110, PTH111
    if os.environ.get("AWS_ACCESS_KEY_ID") or not (os.environ.get("AWS_PROFILE") or any(found)):
        return {}
    try:
        from boto3 import Session
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return {}
    try:
        session = Session()
        return {"credential_provider": Boto3CredentialProvider(session)} if session.get_credentials() else {}
    except BotoCoreError as error:
        message = f"the store cannot be opened: AWS's files and AWS_PROFILE do not go together: {error}"
        raise UsageError(message) from error


def _in_a_line(error: Exception) -> str:
    """Return obstore's first line, and what the server's XML says where that breaks off in it.

    Further lines are how Rust would print the error. https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
    Without credentials obstore asks the machine for those of its role, and then tells of that address alone:
    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html
    """
    first, _, others = str(error).partition("\n")
    if "/latest/api/token" in first:
        return f"{first}. No credentials are in variables or files of AWS's, and this machine seems to have no role"
    code, words = (others.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0] for tag in ("Code", "Message"))
    return first.partition("<?xml")[0] + f"{code}, {words}" if code and words else first


def _minute() -> Any:
    from datetime import timedelta  # only obstore wants one

    return timedelta(seconds=60)


class OutKey(NamedTuple):
    """The name of an object that a runner left: whose it is, what it is, and of which attempt."""

    job: str
    place: int
    kind: str
    """result | output | stopped, of which there is one a place; evidence | second, one an attempt."""
    attempt: str = ""

    @classmethod
    def parse(cls, name: str) -> OutKey | None:
        """Read a name from a listing; None if it is not one of ours."""
        job, _, rest = name.partition(".")
        place, _, rest = rest.partition(".")
        kind, _, attempt = rest.partition(".")
        return cls(job, int(place), kind, attempt) if place.isdecimal() and kind else None

    def __str__(self) -> str:
        """Return the name, as in a listing."""
        return ".".join((self.job, str(self.place), self.kind, *([self.attempt] if self.attempt else [])))


class Keys:
    """Every key that the project uses, for the worker of one name. Jobs' names hold no dots or slashes.

    jobs/JOB                          the manifest, and the payload where it is not inline
    arrays/JOB                        the payloads of an array's elements, found by index
    ids/JOB                           the backend's id of the job
    blobs/DIGEST                      a large function or argument, once for all tasks that share it
    out/JOB.PLACE.result              a result, or the function's own exception; create-only
    out/JOB.PLACE.output              what a running task has printed so far
    out/JOB.PLACE.stopped             the runner's answer to a stop marker
    out/JOB.PLACE.evidence.ATTEMPT    how a task died, by one attempt
    out/JOB.PLACE.second.ATTEMPT      a run whose result came second
    stops/JOB.PLACE                   a stop marker: do not start this task, or end it
    waiting/SEGMENT                   bytes of calls that wait in a host for their turn
    run                               eight characters, those of a durable host's run, and whose it is
    outcomes/RUN.CALL.FUNCTION        what a call of that run came to, until it is forgotten
    epochs/NUMBER                     one for each start of the worker
    birth                             eight characters, for ever unique to this store and worker
    """

    def __init__(self, worker: str) -> None:
        self.worker = worker
        self.out = f"{worker}/out"
        self.stops = f"{worker}/stops"
        self.epochs = f"{worker}/epochs"
        self.birth = f"{worker}/birth"
        self.manifests = f"{worker}/jobs"
        self.ids = f"{worker}/ids"
        self.blobs = f"{worker}/blobs"
        self.arrays = f"{worker}/arrays"
        self.segments = f"{worker}/waiting"
        self.run = f"{worker}/run"
        self.outcomes = f"{worker}/outcomes"

    def manifest(self, job: str) -> str:
        return f"{self.manifests}/{job}"

    def array(self, job: str) -> str:
        return f"{self.arrays}/{job}"

    def job_id(self, job: str) -> str:
        return f"{self.ids}/{job}"

    def blob(self, digest: str) -> str:
        return f"{self.blobs}/{digest}"

    def waiting(self, segment: str) -> str:
        return f"{self.segments}/{segment}"

    def outcome(self, task_id: str) -> str:
        return f"{self.outcomes}/{task_id}"

    def epoch(self, number: int) -> str:
        return f"{self.epochs}/{number:08d}"

    def stop(self, job: str, place: int) -> str:
        return f"{self.stops}/{job}.{place}"

    def left(self, out: OutKey) -> str:
        return f"{self.out}/{out}"
