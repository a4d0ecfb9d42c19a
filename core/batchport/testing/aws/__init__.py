"""A simulator of AWS for tests on any laptop: Batch with AWS's limits, whose jobs run for real, and S3, and their logs.

    with AwsSimulator() as aws:
        os.environ.update(aws.env)

Called by the tests of AWS adapters and by tests/lab/aws-up. It is moto's server (https://docs.getmoto.org) with a
Batch of our own in it, and needs `batchport[testing-aws]`; to import this package needs nothing.

simulator   AwsSimulator, the door: starts the server as a process, and ends it
server      that process
settings    how long, how many, how big
api         the calls, as Amazon's pages have them
rules       what is refused, and in which words
jobs        a job: what it is, and what the calls show of it
scheduler   which job may run next
objects     writes to S3, one at a time
attempts    one run of a job: its log, its time-out, its end
containers  what runs it: a container engine,
processes   or this machine's own processes

Each rule names the page of AWS's documentation that it comes from. A text marked (seen) is in no page, but public
reports of AWS's answers have it. A text marked (guess) is a guess: nothing may depend on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchport.testing.aws.simulator import AwsSimulator

__all__ = ["AwsSimulator"]


def __getattr__(name: str) -> object:
    if name == "AwsSimulator":
        from batchport.testing.aws.simulator import AwsSimulator

        return AwsSimulator
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
