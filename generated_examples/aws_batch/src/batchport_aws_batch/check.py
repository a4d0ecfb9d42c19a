"""What `batchport doctor` looks at, and the worker once a job is refused: whether jobs can run, with these options.

https://docs.aws.amazon.com/batch/latest/userguide/troubleshooting.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from batchport import BackendUnusableError, BatchportError, Check, RejectedJobError

from .options import Options

OWN = {"jobDefinition": "job definition ", "shareIdentifier": "the option `share`"}
"""What a job may bring along of its own, and how the look at what is for all jobs begins."""


def checks(options: Options, ask: Callable[..., Any], region: str) -> Iterator[Check]:
    """Look at the credentials, the queue and its compute environments, the job definition and its image."""
    try:
        yield Check(f"credentials of {ask('sts', 'get_caller_identity')['Arn']}, in the region {region}", ok=True)
        yield from needed(options, ask)
        for queue in ask("batch", "describe_job_queues", jobQueues=[options.queue])["jobQueues"]:
            names = [each["computeEnvironment"] for each in queue["computeEnvironmentOrder"]]
            for each in ask("batch", "describe_compute_environments", computeEnvironments=names)["computeEnvironments"]:
                yield looked_at(f"compute environment {each['computeEnvironmentName']}", each)
    except BatchportError as error:
        yield Check("what AWS answers", ok=False, advice=str(error))


def needed(options: Options, ask: Callable[..., Any]) -> Iterator[Check]:
    """Look at what every job needs: the queue, and the newest active revision of the job definition, and its image."""
    queues = ask("batch", "describe_job_queues", jobQueues=[options.queue])["jobQueues"]
    for each in queues or [{"state": "not in this account and region"}]:
        yield looked_at(f"job queue {each.get('jobQueueArn', options.queue)}", each)
    for each in queues:
        is_well = bool(options.share) == ("schedulingPolicyArn" in each)
        yield Check("the option `share`", is_well, "it is for queues with a fair-share policy, and these need it")
    name, _, revision = options.definition.rpartition("/")[2].partition(":")
    found = ask("batch", "describe_job_definitions", jobDefinitionName=name, status="ACTIVE")["jobDefinitions"]
    active = {each["revision"]: each for each in found if revision in {"", str(each["revision"])}}
    image = active[max(active)].get("containerProperties", {}).get("image") if active else None
    yield Check(
        f"job definition {options.definition}" + (f", image {image}" if image else ""),
        ok=bool(image),
        advice="none is ACTIVE here that has containerProperties: register one, or give the option `definition`",
    )


def looked_at(what: str, each: dict[str, Any]) -> Check:
    """Look at the state and the status of something that takes jobs."""
    said = ", ".join(filter(None, (each.get("state", "ENABLED"), each.get("status"), each.get("statusReason"))))
    return Check(what, said.startswith("ENABLED, VALID"), f"it is {said}: mend that, or name others in the options")


def whose_fault(
    error: RejectedJobError, extra: Mapping[str, object], options: Options, ask: Callable[..., Any]
) -> BatchportError:
    """Return what the error of a refused job is: a BackendUnusableError if every other would be refused, too.

    A definition or a share that the job brings along in its `extra` is not that of every other.
    """
    own = tuple(what for name, what in OWN.items() if name in extra)
    wrong = [f"{it.what}: {it.advice}" for it in needed(options, ask) if not it.ok and not it.what.startswith(own)]
    return BackendUnusableError("; ".join((str(error), *wrong))) if wrong else error
