"""What users may choose of AWS Batch; everything else that SubmitJob takes goes into `Resources.extra`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Options:
    """Options of this backend. An empty region or profile leaves the choice to AWS's own files and variables.

    queue, definition: names or ARNs of the job queue and of the job definition, whose image has batchport in it.
    share, priority: for a queue with a fair-share policy, which needs the first: shareIdentifier, and
        schedulingPriorityOverride (0 to 9999).
    tags: for each job. They need the permission batch:TagResource, so there are none by default.
    """

    queue: str = "batchport"
    definition: str = "batchport"
    region: str = ""
    profile: str = ""
    share: str = ""
    priority: int | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
