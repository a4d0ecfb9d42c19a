"""The engine that drives one adapter for one host.

Called by hosts (`batchport.hosts`) and by the conformance suite. `BatchWorker` is all of it that others
use; the other modules hold one concept each: `calls` (asking the adapter), `naming` (who this worker is,
and names for its jobs), `packing` (which tasks share a job), `payload` (what a job is given), `tracking`
(what is known of a job, and when that is enough for a verdict), `verdicts` (the words for it).
"""

from batchport.worker.engine import BatchWorker, Counts

__all__ = ["BatchWorker", "Counts"]
