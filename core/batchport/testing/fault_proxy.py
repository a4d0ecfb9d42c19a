"""FaultProxy: an HTTP server's bad days, in front of a good one: AWS Batch, S3, Kubernetes, a backend of the house.

    with FaultProxy("http://127.0.0.1:5900") as proxy:
        client = connect(proxy.url)
        proxy.fail("submitjob", "500-after")
        ...
        assert proxy.count("submitjob") == 1

Called by the tests of adapters and stores that speak HTTP. Standard library only.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import urlsplit

__all__ = ["Call", "FaultProxy"]

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "expect", "content-length"}
"""Headers that are between two neighbours. https://www.rfc-editor.org/rfc/rfc9110#section-7.6.1"""
FAULT = re.compile(r"(\d{3}|reset|hang)-(before|after)|delay|truncate")
CODES = {
    429: ("TooManyRequestsException", "TooManyRequests", "TooManyRequests"),
    500: ("ServerException", "InternalError", "InternalError"),
    503: ("ServiceUnavailableException", "SlowDown", "ServiceUnavailable"),
}
"""What AWS Batch, S3 and Kubernetes call a status.
https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
https://docs.aws.amazon.com/batch/latest/APIReference/CommonErrors.html"""
SERVER_S = 600
CHUNK = 65536


@dataclass
class Call:
    """A request that came: what it was, its fault, and the status of the server's answer, if it was asked."""

    request: str
    fault: str | None = None
    status: int | None = None


@dataclass
class Rule:
    """A fault that is still to come."""

    match: re.Pattern[str]
    fault: str
    times: int
    seconds: float
    body: re.Pattern[bytes] | None
    code: str | None


class FaultProxy:
    """A proxy on this machine in front of the server at `to`; `url` is its own address, for as long as it is open.

    context: how to trust a server at https://; clients speak plain HTTP to the proxy in any case.
    """

    def __init__(self, to: str, *, context: ssl.SSLContext | None = None) -> None:
        address = urlsplit(to)
        self.secure = address.scheme == "https"
        self.server = (address.hostname or "127.0.0.1", address.port or (443 if self.secure else 80))
        self.context = context
        self.calls: list[Call] = []
        """Every request that came, in order."""
        self._rules: list[Rule] = []
        self._lock = threading.Lock()
        self._listener = _Listener(self)
        self.url = f"http://127.0.0.1:{self._listener.server_port}"
        threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take no more requests."""
        self._listener.shutdown()
        self._listener.server_close()

    def fail(  # noqa: PLR0913 - a fault has as many sides
        self, match: str, fault: str, *, times: int = 1, seconds: float = 5, body: str = "", code: str | None = None
    ) -> None:
        """Have the next requests go wrong in which `match`, a regular expression, is found: "POST /v1/submitjob".

        fault:
            500-before, 500-after       that status, without the server having seen the request, or after it answered
            reset-before, reset-after   a reset connection, likewise
            hang-before, hang-after     nothing for so many `seconds`, and then a reset, likewise
            delay                       the answer comes so many `seconds` late
            truncate                    half of the answer, then a reset
        times: how many requests; the first rule that matches one is used.
        body: a regular expression that must be found in the request's body too.
        code: the error's name, where the one that AWS, S3 or Kubernetes has for the status is not meant.
        """
        if not FAULT.fullmatch(fault):
            raise ValueError(f"{fault!r} is no fault; they are: {(self.fail.__doc__ or '').partition('fault:')[2]}")
        within = re.compile(body.encode()) if body else None
        with self._lock:
            self._rules.append(Rule(re.compile(match, re.IGNORECASE), fault, times, seconds, within, code))

    def mend(self) -> None:
        """Have nothing more go wrong."""
        with self._lock:
            self._rules.clear()

    def count(self, match: str) -> int:
        """Return how many of the requests that came match."""
        return sum(re.search(match, call.request, re.IGNORECASE) is not None for call in self.calls)

    def next_fault(self, call: Call, body: bytes) -> Rule | None:
        """Note a request, and return what is to go wrong with it. Called for each request."""
        with self._lock:
            self.calls.append(call)
            for rule in self._rules:
                if rule.match.search(call.request) and (rule.body is None or rule.body.search(body)):
                    rule.times -= 1
                    if rule.times <= 0:
                        self._rules.remove(rule)
                    call.fault = rule.fault
                    return rule
        return None

    def connect(self) -> http.client.HTTPConnection:
        """Return a connection to the server."""
        if self.secure:
            return http.client.HTTPSConnection(*self.server, timeout=SERVER_S, context=self.context)
        return http.client.HTTPConnection(*self.server, timeout=SERVER_S)


class _Listener(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 128

    def __init__(self, proxy: FaultProxy) -> None:
        self.proxy = proxy
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that go away are what tests make."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing: the proxy's calls are the log."""

    def _handle(self) -> None:
        proxy, body = cast("_Listener", self.server).proxy, self._body()
        call = Call(f"{self.command} {self.path}")
        rule = proxy.next_fault(call, body)
        kind, _, when = rule.fault.partition("-") if rule else ("", "", "")
        if rule and when == "before":
            self._fail(kind, rule)
            return
        server = self._forward(proxy, body)
        answer = server.getresponse()
        call.status = answer.status
        try:
            if rule and when == "after":
                answer.read()
                self._fail(kind, rule)
                return
            if rule and kind == "delay":
                time.sleep(rule.seconds)
            self._pass_on(answer, truncate=kind == "truncate")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client went away
        finally:
            server.close()

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = do_OPTIONS = _handle  # noqa: N815 - http.server's names

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return body

    def _forward(self, proxy: FaultProxy, body: bytes) -> http.client.HTTPConnection:
        server = proxy.connect()
        server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in HOP_BY_HOP:
                server.putheader(name, value)  # Host too: signatures stay valid
        server.putheader("Content-Length", str(len(body)))
        server.endheaders(body)
        return server

    def _pass_on(self, answer: http.client.HTTPResponse, *, truncate: bool) -> None:
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in HOP_BY_HOP]
        length = answer.getheader("content-length")
        if self.command == "HEAD" or answer.status in {204, 304} or length is not None:
            self._answer(answer.status, answer.read(), headers, length=length, truncate=truncate)
            return
        self.send_response_only(answer.status)  # a stream, as a watch or a followed log is
        for name, value in [*headers, ("Transfer-Encoding", "chunked")]:
            self.send_header(name, value)
        self.end_headers()
        while chunk := answer.read1(CHUNK):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            self.wfile.flush()
            if truncate:
                self._reset()
                return
        self.wfile.write(b"0\r\n\r\n")

    def _answer(
        self,
        status: int,
        body: bytes,
        headers: Iterable[tuple[str, str]] = (),
        *,
        length: str | None = None,
        truncate: bool = False,
    ) -> None:
        self.send_response_only(status)
        for name, value in [*headers, ("Content-Length", length or str(len(body)))]:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if truncate else body)
        if truncate:
            self.wfile.flush()
            time.sleep(0.1)  # a reset overtakes what the client has not read yet
            self._reset()

    def _fail(self, kind: str, rule: Rule) -> None:
        if kind == "hang":
            time.sleep(rule.seconds)
        if kind in {"hang", "reset"}:
            self._reset()
            return
        status = int(kind)
        aws, s3, kubernetes = (rule.code or name for name in CODES.get(status, ("Injected",) * 3))
        if self.path.startswith(("/api/", "/apis/")):
            about = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": kubernetes, "code": status}
            body, headers = json.dumps(about | {"message": "injected"}), [("Content-Type", "application/json")]
            if status in {429, 503}:
                headers.append(("Retry-After", "1"))
        elif "/s3/aws4_request" in self.headers.get("authorization", "") + self.path:
            body = f"<?xml version='1.0'?><Error><Code>{s3}</Code><Message>injected</Message></Error>"
            headers = [("Content-Type", "application/xml")]
        else:
            body = json.dumps({"message": "injected"})
            headers = [("Content-Type", "application/json"), ("x-amzn-errortype", aws)]
        self._answer(status, body.encode(), headers)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()
