"""What passes between a host and the worker."""

from __future__ import annotations

from batchport.errors import Reason
from batchport.tasks import Blob, Failure, Outcome, Task


async def test_equal_bytes_have_equal_keys_and_are_read_back() -> None:
    one, same, other = Blob.of(b"data"), Blob.of(b"data"), Blob.of(b"date")
    assert one.key == same.key != other.key
    assert (one.size, await one.read(), await one.read()) == (4, b"data", b"data")


def test_the_key_of_a_blob_is_safe_as_a_name_in_any_store() -> None:
    key = Blob.of(b"").key
    assert len(key) <= 80
    assert key.isalnum()


def test_a_failure_reads_as_sentence_evidence_and_advice() -> None:
    failure = Failure(Reason.TIMEOUT, "It ran too long.", "line 1\nline 2\n", "Ask for more.", b"secret")
    assert str(failure) == "It ran too long. [time limit]\n  | line 1\n  | line 2\n  -> Ask for more."


def test_a_failure_without_evidence_or_advice_is_one_line() -> None:
    assert str(Failure(Reason.CANCELLED, "Task 7 was cancelled.")) == "Task 7 was cancelled. [cancelled]"


def test_arguments_results_and_output_stay_out_of_what_is_printed_and_logged() -> None:
    secret = b"secret"
    task = Task("7", Blob.of(secret), (Blob.of(secret),), {"x": Blob.of(secret)})
    failed = Outcome("7", failure=Failure(Reason.USER_ERROR, "It raised.", exception=secret), output="secret")
    assert "secret" not in repr((task, Outcome("7", secret, output="secret"), failed))
