"""The wire format: whole envelopes come back as they were, and anything else is refused in words."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchport.envelope import LARGEST, PROTOCOL, Envelope
from batchport.errors import EnvelopeError, VersionError

START = struct.Struct(">4sI32s")
RESULT = Envelope("result", "job-1", "task-1", (b"a", b"bc"), {"nonce": "f00"}, cloudpickle="3.1.2")
NOISE = random.Random(1).randbytes(5000)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(
    st.builds(
        Envelope,
        kind=st.just("payload"),
        job=st.text(),
        task=st.text(),
        parts=st.lists(st.binary() | st.sampled_from([NOISE, bytes(9000)]), max_size=4).map(tuple),
        fields=st.dictionaries(st.text(), json_values, max_size=4),
        codec=st.text(),
        python=st.text(),
        cloudpickle=st.text(),
    )
)
def test_an_envelope_comes_back_as_it_was(envelope: Envelope) -> None:
    assert Envelope.from_bytes(envelope.to_bytes(), ("manifest", "payload")) == envelope


@given(st.integers(0, len(RESULT.to_bytes()) - 1))
def test_an_envelope_that_is_cut_off_anywhere_is_refused(length: int) -> None:
    with pytest.raises(EnvelopeError):
        Envelope.from_bytes(RESULT.to_bytes()[:length], ("result",))


@given(st.binary())
def test_foreign_bytes_are_refused(data: bytes) -> None:
    for each in (data, START.pack(b"bprt", len(data), bytes(32)) + data):
        with pytest.raises(EnvelopeError):
            Envelope.from_bytes(each, ("result",))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "these 0 bytes are not an envelope of batchport's"),
        (b"\x80\x05" + b"K\x01." * 20, "these 62 bytes are not an envelope of batchport's"),
        (RESULT.to_bytes()[:39], "these 39 bytes are not an envelope of batchport's"),
        (
            RESULT.to_bytes()[:-1] + b"!",
            "the result of job job-1 is damaged: its digest does not match its 3 bytes",
        ),
        (
            RESULT.to_bytes()[:-1],
            "the result of job job-1 is damaged: its digest does not match its 2 bytes",
        ),
    ],
)
def test_damage_is_told_from_bytes_that_are_no_envelope(data: bytes, message: str) -> None:
    assert refusal(data) == message


def test_a_header_that_is_cut_off_is_refused() -> None:
    assert refusal(RESULT.to_bytes()[:60]).startswith("the envelope's header is damaged or cut off: JSONDecodeError(")


def test_an_envelope_of_another_kind_is_refused() -> None:
    with pytest.raises(EnvelopeError) as raised:
        Envelope.from_bytes(RESULT.to_bytes(), ("manifest", "payload"))
    assert str(raised.value) == "this is a 'result', where a 'manifest' or 'payload' belongs"


def test_an_envelope_of_another_protocol_asks_for_the_same_release_on_both_sides() -> None:
    with pytest.raises(VersionError) as raised:
        Envelope.from_bytes(forged(protocol=PROTOCOL + 1), ("result",))
    assert str(raised.value) == (
        "it speaks protocol 2 and this batchport speaks 1: install the same batchport release on both sides"
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": 5}, "the envelope's header is damaged or cut off: TypeError('kind')"),
        ({"fields": []}, "the envelope's header is damaged or cut off: TypeError('fields')"),
        ({"digest": None}, "the envelope's header is damaged or cut off: TypeError('digest')"),
        ({"sizes": ["1", 2]}, "the envelope's header is damaged or cut off: ValueError('sizes')"),
        ({"sizes": [None]}, "the envelope's header is damaged or cut off: ValueError('sizes')"),
        ({"sizes": [-1, 4]}, "the envelope's header is damaged or cut off: ValueError('sizes')"),
        ({"sizes": [1, 5]}, "the envelope promises 6 bytes and holds 3"),
        ({"sizes": [1]}, "the envelope promises 1 bytes and holds 3"),
        (
            {"encoding": "gzip"},
            "the envelope's body cannot be unzipped: Error -3 while decompressing data: incorrect header check",
        ),
        (
            {"sizes": [LARGEST, 1]},
            "the envelope promises 8589934593 bytes, more than the 8589934592 that are read",
        ),
    ],
)
def test_a_header_that_does_not_fit_its_body_is_refused(wrong: dict[str, Any], message: str) -> None:
    assert refusal(forged(**wrong)) == message


def test_a_body_that_unzips_to_more_than_it_promises_is_not_unzipped_to_the_end() -> None:
    bomb = Envelope("result", "job-1", parts=(bytes(100_000_000),)).to_bytes()
    assert len(bomb) < 1_000_000
    assert refusal(forged(bomb, sizes=[10])) == "the envelope promises 10 bytes and holds 11"


def test_a_body_is_zipped_only_where_that_makes_it_smaller() -> None:
    assert header_of(Envelope("result", "job-1", parts=(bytes(4096),)).to_bytes())["encoding"] == "plain"
    assert header_of(Envelope("result", "job-1", parts=(bytes(4097),)).to_bytes())["encoding"] == "gzip"
    assert header_of(Envelope("result", "job-1", parts=(NOISE,)).to_bytes())["encoding"] == "plain"


def test_the_header_says_what_a_reader_must_know_before_it_unpickles() -> None:
    header = header_of(RESULT.to_bytes())
    assert set(header) == {
        *("protocol", "kind", "task", "job", "python", "cloudpickle", "codec"),
        *("encoding", "sizes", "digest", "fields"),
    }
    assert header["python"] == f"{sys.version_info.major}.{sys.version_info.minor}"


def test_the_place_of_the_signature_is_there_and_empty() -> None:
    magic, _, signature = START.unpack_from(RESULT.to_bytes())
    assert (magic, signature) == (b"bprt", bytes(32))


def test_reading_envelopes_imports_neither_cloudpickle_nor_obstore() -> None:
    code = "import sys, batchport.envelope; print({'cloudpickle', 'obstore', 'pickle'} & sys.modules.keys())"
    done = subprocess.run((sys.executable, "-c", code), check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"


def refusal(data: bytes) -> str:
    with pytest.raises(EnvelopeError) as raised:
        Envelope.from_bytes(data, ("result",))
    return str(raised.value)


def header_of(data: bytes) -> dict[str, Any]:
    _, length, _ = START.unpack_from(data)
    header: dict[str, Any] = json.loads(data[START.size : START.size + length])
    return header


def forged(data: bytes = RESULT.to_bytes(), **changes: object) -> bytes:
    """Return an envelope whose header says something else, with the digest still right."""
    _, length, _ = START.unpack_from(data)
    head = json.dumps({**header_of(data), **changes}).encode()
    return START.pack(b"bprt", len(head), bytes(32)) + head + data[START.size + length :]
