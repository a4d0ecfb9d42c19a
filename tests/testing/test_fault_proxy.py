"""FaultProxy does to a client what bad days do, before or after the server has done its part."""

from __future__ import annotations

import http.client
import json
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from batchport.testing.fault_proxy import Call, FaultProxy

BODY = b"0123456789" * 1000
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Whatever proxy this machine's environment names, it is not for addresses of its own."""


class Server(BaseHTTPRequestHandler):
    """Answers with BODY, or, below /watch, with three lines that come one after the other; keeps what it was asked."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, bytes]]
    go_on: threading.Event

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.seen.append((f"{self.command} {self.path}", body))
        self.send_response(200)
        if self.path.startswith("/watch"):
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for number in range(3):
                self.wfile.write(b"7\r\nevent %d\r\n" % number)
                self.wfile.flush()
                self.go_on.wait(10)
            self.wfile.write(b"0\r\n\r\n")
            return
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    do_GET = do_POST  # noqa: N815 - http.server's name

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Any]:
    handler = type("Handler", (Server,), {"seen": [], "go_on": threading.Event()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as listener:
        listener.daemon_threads = True
        threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True).start()
        yield listener
        listener.shutdown()


@pytest.fixture
def proxy(server: Any) -> Iterator[FaultProxy]:
    with FaultProxy(f"http://127.0.0.1:{server.server_port}") as proxy:
        yield proxy


def post(proxy: FaultProxy, path: str = "/v1/submitjob", body: bytes = b"{}") -> bytes:
    with DIRECT.open(urllib.request.Request(proxy.url + path, data=body), timeout=10) as answer:
        return bytes(answer.read())


def seen(server: Any) -> list[tuple[str, bytes]]:
    return list(server.RequestHandlerClass.seen)


def test_without_a_fault_all_passes_and_is_noted(proxy: FaultProxy, server: Any) -> None:
    assert post(proxy, body=b"job") == BODY
    assert seen(server) == [("POST /v1/submitjob", b"job")]
    assert proxy.calls == [Call("POST /v1/submitjob", None, 200)]


@pytest.mark.parametrize(("fault", "reached"), [("429-before", 0), ("500-before", 0), ("500-after", 1)])
def test_a_status_comes_before_or_after_the_server_did_its_part(
    fault: str, reached: int, proxy: FaultProxy, server: Any
) -> None:
    proxy.fail("submitjob", fault)
    with pytest.raises(urllib.error.HTTPError) as raised:
        post(proxy)
    with raised.value as answer:
        assert answer.code == int(fault[:3])
    assert len(seen(server)) == reached
    assert proxy.calls == [Call("POST /v1/submitjob", fault, 200 if reached else None)]
    assert post(proxy) == BODY, "a fault hits as many requests as it was asked to"


@pytest.mark.parametrize(
    ("fault", "reached"), [("reset-before", 0), ("reset-after", 1), ("hang-before", 0), ("hang-after", 1)]
)
def test_a_connection_is_reset_before_or_after_the_server_did_its_part(
    fault: str, reached: int, proxy: FaultProxy, server: Any
) -> None:
    proxy.fail("submitjob", fault, seconds=0.3)
    began = time.monotonic()
    with pytest.raises((ConnectionResetError, urllib.error.URLError)):
        post(proxy)
    assert (time.monotonic() - began >= 0.3) == fault.startswith("hang")
    assert len(seen(server)) == reached


def test_an_answer_is_late(proxy: FaultProxy) -> None:
    proxy.fail("submitjob", "delay", seconds=0.3)
    began = time.monotonic()
    assert post(proxy) == BODY
    assert time.monotonic() - began >= 0.3


def test_an_answer_is_cut_in_half(proxy: FaultProxy, server: Any) -> None:
    proxy.fail("submitjob", "truncate")
    with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
        post(proxy)
    assert len(seen(server)) == 1


def test_a_stream_passes_as_it_comes_and_is_cut_after_its_first_part(proxy: FaultProxy, server: Any) -> None:
    with DIRECT.open(f"{proxy.url}/watch", timeout=10) as answer:
        assert answer.read1() == b"event 0"
        server.RequestHandlerClass.go_on.set()
        assert answer.read() == b"event 1event 2"
    proxy.fail("/watch", "truncate")
    with pytest.raises((OSError, http.client.HTTPException)), DIRECT.open(f"{proxy.url}/watch", timeout=10) as answer:
        answer.read()


def test_a_fault_is_for_the_requests_it_names_and_as_many_as_it_says(proxy: FaultProxy) -> None:
    proxy.fail("submitjob", "500-before", times=2, body="job-7")
    assert post(proxy, "/v1/describejobs", b"job-7") == BODY
    assert post(proxy, body=b"job-8") == BODY
    for _ in range(2):
        with pytest.raises(urllib.error.HTTPError) as raised:
            post(proxy, body=b"a job-7")
        raised.value.close()
    assert post(proxy, body=b"job-7") == BODY
    assert (proxy.count("submitjob"), proxy.count("describejobs"), proxy.count("listjobs")) == (4, 1, 0)


def test_mending_ends_all_faults(proxy: FaultProxy) -> None:
    proxy.fail(".", "reset-before", times=1000)
    proxy.mend()
    assert post(proxy) == BODY


def test_a_fault_that_is_none_is_refused_with_those_there_are(proxy: FaultProxy) -> None:
    with pytest.raises(ValueError, match=r"'500' is no fault; they are:(.|\n)*500-before"):
        proxy.fail("submitjob", "500")


@pytest.mark.parametrize(
    ("path", "headers", "words"),
    [
        ("/v1/submitjob", {}, ("x-amzn-errortype", "TooManyRequestsException", "injected")),
        (
            "/b/k",
            {"Authorization": "AWS4 x/s3/aws4_request"},
            ("content-type", "application/xml", "<Code>TooManyRequests<"),
        ),
        ("/api/v1/pods", {}, ("retry-after", "1", '"reason": "TooManyRequests"')),
    ],
)
def test_a_status_is_worded_as_the_service_words_it(
    path: str, headers: dict[str, str], words: tuple[str, str, str], proxy: FaultProxy
) -> None:
    proxy.fail(".", "429-before")
    with pytest.raises(urllib.error.HTTPError) as raised:
        DIRECT.open(urllib.request.Request(proxy.url + path, headers=headers), timeout=10)
    name, value, text = words
    with raised.value as answer:
        assert answer.headers[name] == value
        assert text in answer.read().decode()


def test_an_error_may_have_a_name_of_its_own(proxy: FaultProxy) -> None:
    proxy.fail("submitjob", "403-before", code="ExpiredTokenException")
    with pytest.raises(urllib.error.HTTPError) as raised:
        post(proxy)
    with raised.value as answer:
        assert answer.headers["x-amzn-errortype"] == "ExpiredTokenException"
        assert json.loads(answer.read()) == {"message": "injected"}


def test_a_server_at_https_is_reached_with_the_trust_that_is_given(server: Any, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    asked = (
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=here",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
    )
    made = ("openssl", "req", *asked, "-keyout", str(key), "-out", str(certificate))
    subprocess.run(made, check=True, capture_output=True)
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(certificate, key)
    server.socket = own.wrap_socket(server.socket, server_side=True)
    trust = ssl.create_default_context(cafile=str(certificate))
    with FaultProxy(f"https://127.0.0.1:{server.server_port}", context=trust) as proxy:
        assert post(proxy) == BODY
