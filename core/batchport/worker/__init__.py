"""The engine that drives one adapter for one host.

Called by hosts (`batchport.hosts`) and by the conformance suite, which use `BatchWorker` and nothing
else. Inside, one concept a module:

    engine      BatchWorker: options, start, end, what the host calls
    ledger      the books: which task is where
    sending     waiting tasks become jobs; every job is submitted once
    results     what runners left in the store
    polling     what the backend says, and what follows
    cancelling  jobs that nobody wants are ended
    outcomes    each task gets exactly one
    tracking    what is known of a job, and when that is enough for a verdict (pure)
    verdicts    the words for a bad ending (pure)
    packing     which tasks share a job (pure)
    payload     what a job is given (pure)
    naming      who this worker is, and names for its jobs
    blobs       functions and arguments that tasks share
    storage     the store, awaited
    calls       the adapter, awaited
"""

from batchport.worker.engine import BatchWorker
from batchport.worker.ledger import Counts

__all__ = ["BatchWorker", "Counts"]
