"""Writes to S3, one at a time: moto looks and then writes, and between the two another may have written.

Called by the server. https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
"""

from __future__ import annotations

import threading
from typing import Any

from moto.s3.responses import S3Response

__all__ = ["install"]

_writing = threading.Lock()
_put_object = S3Response.put_object


def _put_object_alone(self: S3Response) -> Any:
    with _writing:
        return _put_object(self)


def install() -> None:
    """Have this process's S3 keep what it promises of create-only writes."""
    S3Response.put_object = _put_object_alone  # type: ignore[method-assign]
