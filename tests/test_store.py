"""The store: one set of promises for a folder and for memory, and what a folder promises beyond them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchport.errors import StoreError, UsageError
from batchport.store import FolderStore, Keys, OutKey, Store, open_store
from batchport.testing.aws import AwsSimulator

RACERS = 8
RACE = """
import sys
from batchport.store import open_store
url, who = sys.argv[1:]
store = open_store(url)
print("ready", flush=True)
sys.stdin.readline()
print([store.put(f"w/out/{n}", who.encode(), create=True) for n in range(50)])
"""
KILLED = """
import os, signal, sys
from batchport.store import open_store
os.link = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
open_store(sys.argv[1]).put("w/out/a", b"data", create=True)
"""
"""A writer that is killed after it wrote its bytes, and before they have their name."""


@pytest.fixture(scope="module")
def aws() -> Iterator[AwsSimulator]:
    with AwsSimulator() as simulator:
        yield simulator


@pytest.fixture
def s3(aws: AwsSimulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the URL of an empty store at an endpoint that speaks plain HTTP."""
    monkeypatch.delenv("AWS_ALLOW_HTTP", raising=False)
    for name, value in aws.env.items():
        monkeypatch.setenv(name, value)
    return f"{aws.store}/{tmp_path.name}"


@pytest.fixture(params=["folder", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Return an empty store of each kind that needs nothing but this machine."""
    if request.param == "s3":
        return open_store(request.getfixturevalue("s3"))
    return open_store(tmp_path / "store" if request.param == "folder" else f"memory://{tmp_path.name}")


def test_what_was_written_is_read_back(store: Store) -> None:
    assert store.put("w/jobs/a", b"data")
    assert store.get("w/jobs/a") == b"data"
    assert store.exists("w/jobs/a")


def test_an_object_may_be_empty(store: Store) -> None:
    store.put("w/stops/a.0", b"")
    assert store.get("w/stops/a.0") == b""


def test_what_is_not_there_is_none(store: Store) -> None:
    assert store.get("w/jobs/a") is None
    assert not store.exists("w/jobs/a")


def test_writing_again_replaces(store: Store) -> None:
    store.put("w/jobs/a", b"long before")
    assert store.put("w/jobs/a", b"after")
    assert store.get("w/jobs/a") == b"after"


def test_a_second_create_is_refused_and_changes_nothing(store: Store) -> None:
    assert store.put("w/out/a", b"first", create=True)
    assert not store.put("w/out/a", b"second", create=True)
    assert store.get("w/out/a") == b"first"


def test_the_names_in_a_folder_are_listed_without_those_beside_it(store: Store) -> None:
    for key in ("w/out/b.0.result", "w/out/a.0.result", "w/outer/c", "w/jobs/a", "v/out/d"):
        store.put(key, b"")
    assert sorted(store.names("w/out")) == ["a.0.result", "b.0.result"]


def test_a_folder_in_which_nothing_was_written_has_no_names(store: Store) -> None:
    assert store.names("w/out") == []


def test_deleting_removes_and_deleting_what_is_not_there_is_no_error(store: Store) -> None:
    store.put("w/out/a", b"")
    store.put("w/out/b", b"")
    store.delete(["w/out/a", "w/out/never-there", "v/out/x"])
    assert store.names("w/out") == ["b"]
    store.delete([])


def test_calls_are_counted_by_method(store: Store) -> None:
    store.put("w/out/a", b"")
    store.put("w/out/a", b"", create=True)
    store.get("w/out/a")
    store.exists("w/out/a")
    store.names("w/out")
    store.delete(["w/out/a", "w/out/b"])
    assert store.calls == {"put": 2, "get": 1, "exists": 1, "list": 1, "delete": 1}


def test_the_url_of_a_store_opens_the_same_store(store: Store) -> None:
    store.put("w/birth", b"12345678")
    assert open_store(store.url).get("w/birth") == b"12345678"


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
def test_the_url_of_a_folder_needs_no_quotes_and_leads_back_to_it(name: str) -> None:
    folder = FolderStore(Path("/somewhere", name))
    assert set(folder.url) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_./:=+,@%-")
    again = open_store(folder.url)
    assert isinstance(again, FolderStore)
    assert again.root == folder.root


def test_a_path_with_spaces_is_percent_encoded_in_the_url(tmp_path: Path) -> None:
    store = open_store(tmp_path / "my store #1")
    store.put("w/birth", b"12345678")
    assert store.url == f"file://{tmp_path}/my%20store%20%231"
    assert open_store(store.url).get("w/birth") == b"12345678"


def test_a_relative_path_is_a_folder_below_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_store("here").url == f"file://{tmp_path}/here"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "ftp://host/folder",
            (
                "no store is known for 'ftp://host/folder'; give a folder's path or a URL that begins with one of "
                "file://, s3://, gs://, az://, memory://"
            ),
        ),
        (
            "file://data/batch",
            "'file://data/batch' names a host, data; a folder's URL has three slashes: file:///data/batch",
        ),
        ("s3://", 'the store s3:// cannot be opened: Generic URL error: Unable to recognise URL "s3:"'),
    ],
)
def test_a_url_of_no_store_is_refused_in_words(url: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        open_store(url)
    assert str(raised.value) == message


def test_opening_a_folder_does_not_make_it(tmp_path: Path) -> None:
    open_store(tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_folder_that_cannot_be_used_is_named_with_what_was_tried_and_why(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = open_store(tmp_path / "file")
    for attempt, tried in (
        (lambda: store.put("w/out/a", b""), "write w/out/a"),
        (lambda: store.put("w/out/a", b"", create=True), "write w/out/a"),
        (lambda: store.get("w/out/a"), "read w/out/a"),
        (lambda: store.exists("w/out/a"), "read w/out/a"),
        (lambda: store.names("w/out"), "list w/out"),
        (lambda: store.delete(["w/out/a"]), "delete w/out/a"),
    ):
        with pytest.raises(StoreError) as raised:
            attempt()
        assert str(raised.value) == f"the store {tmp_path}/file cannot {tried}: Not a directory"


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_to_write_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError) as raised:
        open_store(tmp_path / "store").put("w/out/a", b"")
    tmp_path.chmod(0o700)
    assert str(raised.value) == f"the store {tmp_path}/store cannot write w/out/a: Permission denied"


@pytest.fixture
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("usual_umask")
def test_nobody_else_can_read_a_folder_store_under_the_usual_umask(tmp_path: Path) -> None:
    store = open_store(tmp_path / "new" / "store")
    store.put("w/out/a", b"")
    store.put("w/out/b", b"", create=True)
    made = [tmp_path / "new", *(tmp_path / "new").rglob("*")]
    assert {path.stat().st_mode & 0o777 for path in made if path.is_dir()} == {0o700}
    assert {path.stat().st_mode & 0o777 for path in made if path.is_file()} == {0o600}


def test_a_folder_that_is_there_already_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    open_store(tmp_path).put("w/out/a", b"")
    assert tmp_path.stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_of_eight_processes_that_create_the_same_objects_each_object_has_one_winner(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("s3") if kind == "s3" else open_store(tmp_path).url
    racers = [
        subprocess.Popen((sys.executable, "-c", RACE, url, str(who)), stdin=-1, stdout=-1, text=True)
        for who in range(RACERS)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    answers = [json.loads(racer.communicate()[0].lower()) for racer in racers]
    for number in range(50):
        winners = [who for who, won in enumerate(answers) if won[number]]
        assert len(winners) == 1
        assert open_store(url).get(f"w/out/{number}") == str(winners[0]).encode()
    assert set(open_store(url).names("w/out")) == {str(number) for number in range(50)}
    if kind == "folder":
        assert files_in(tmp_path / "w" / "out") == {str(number) for number in range(50)}, "drafts are left behind"


@pytest.mark.parametrize(("allowed", "works"), [("true", True), ("1", True), ("false", False)])
def test_an_endpoint_in_the_clear_is_used_unless_aws_allow_http_forbids_it(
    allowed: str, s3: str, monkeypatch: pytest.MonkeyPatch, *, works: bool
) -> None:
    monkeypatch.setenv("AWS_ALLOW_HTTP", allowed)
    store = open_store(s3)
    if works:
        assert store.put("w/birth", b"12345678")
        return
    with pytest.raises(StoreError, match="cannot write w/birth"):
        store.put("w/birth", b"12345678")


PROFILE = """
[ours]
aws_access_key_id = simulated
aws_secret_access_key = simulated
"""


@pytest.fixture
def files_of_aws(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Leave credentials in a file alone, as a laptop has them, and return the URL of an empty store."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    for name, text in {
        "AWS_SHARED_CREDENTIALS_FILE": PROFILE,
        "AWS_CONFIG_FILE": "[profile ours]\nregion = eu-west-1",
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        monkeypatch.setenv(name, str(tmp_path / name))
    return s3


def test_credentials_of_a_profile_open_a_store_in_s3(files_of_aws: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "ours")
    store = open_store(files_of_aws)
    store.put("w/birth", b"12345678")
    assert store.get("w/birth") == b"12345678"


def test_a_profile_that_is_not_there_is_said_at_once(files_of_aws: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "theirs")
    with pytest.raises(UsageError, match=r"The config profile \(theirs\) could not be found"):
        open_store(files_of_aws)


def test_keys_in_variables_come_first_and_boto3_is_not_imported(
    files_of_aws: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "simulated")
    code = f"import sys; from batchport.store import open_store; open_store({files_of_aws!r}).put('w/a', b'')"
    done = subprocess.run((sys.executable, "-c", code + "; sys.exit('boto3' in sys.modules)"), check=False)
    assert done.returncode == 0
    monkeypatch.setenv("AWS_PROFILE", "theirs")
    assert open_store(files_of_aws).names("w") == ["a"]


def test_where_there_are_no_credentials_that_is_said(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/no/such/folder")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(StoreError, match="No credentials are in variables or files of AWS's, and this machine"):
        open_store(s3).names("w")


@pytest.mark.usefixtures("s3")
def test_what_s3_says_of_a_refused_call_is_told_without_its_xml() -> None:
    store = open_store("s3://there-is-none/folder")
    for call in (lambda: store.put("w/birth", b"12345678"), lambda: store.names("w")):
        with pytest.raises(StoreError) as told:
            call()
        assert str(told.value).endswith("404 Not Found: NoSuchBucket, The specified bucket does not exist")


def test_a_writer_that_is_killed_half_way_leaves_nothing_that_is_listed(tmp_path: Path) -> None:
    done = subprocess.run((sys.executable, "-c", KILLED, str(tmp_path)), check=False)
    assert done.returncode == -signal.SIGKILL
    store = open_store(tmp_path)
    assert len(files_in(tmp_path / "w" / "out")) == 1, "it was killed before it wrote"
    assert store.names("w/out") == []
    assert store.put("w/out/a", b"again", create=True)


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "w" / "out" / "a").mkdir(parents=True)
    with pytest.raises(StoreError):
        open_store(tmp_path).put("w/out/a", b"data")
    assert files_in(tmp_path / "w" / "out") == {"a"}


def test_two_memory_stores_of_one_url_are_one_and_of_two_urls_are_two() -> None:
    one, same, other = open_store("memory://one"), open_store("memory://one/"), open_store("memory://other")
    one.put("w/out/a", b"data")
    assert same.get("w/out/a") == b"data"
    assert other.get("w/out/a") is None


def test_a_folder_store_does_not_import_obstore(tmp_path: Path) -> None:
    code = f"import sys; from batchport.store import open_store; open_store({str(tmp_path)!r}).put('w/a', b'')"
    done = subprocess.run((sys.executable, "-c", code + "; sys.exit('obstore' in sys.modules)"), check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("job-1.0.result", OutKey("job-1", 0, "result")),
        ("job-1.12.evidence.0a1b2c3d", OutKey("job-1", 12, "evidence", "0a1b2c3d")),
    ],
)
def test_the_names_that_runners_leave_are_read_and_written_alike(name: str, key: OutKey) -> None:
    assert OutKey.parse(name) == key
    assert str(key) == name


@pytest.mark.parametrize("name", ["", "job-1", "job-1.0", "job-1.x.result", "job-1.-1.result", "README.md"])
def test_a_name_that_no_runner_left_is_passed_over(name: str) -> None:
    assert OutKey.parse(name) is None


def test_every_key_of_a_worker_is_below_its_name() -> None:
    keys = Keys("demo")
    assert keys.manifest("job-1") == "demo/jobs/job-1"
    assert keys.job_id("job-1") == "demo/ids/job-1"
    assert keys.blob("d1") == "demo/blobs/d1"
    assert keys.left(OutKey("job-1", 0, "result")) == "demo/out/job-1.0.result"
    assert keys.stop("job-1", 0) == "demo/stops/job-1.0"
    assert (keys.birth, keys.epoch(7)) == ("demo/birth", "demo/epochs/00000007")


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
