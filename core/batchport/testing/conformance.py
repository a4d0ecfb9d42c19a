"""BackendConformance: all cases together, as one class for the author of a backend to subclass.

Subclassed in the tests of each backend; see `batchport.testing` for how.
"""

from __future__ import annotations

from batchport.errors import UsageError
from batchport.testing.cases.arrays import ArrayCases
from batchport.testing.cases.cancelling import CancellingCases
from batchport.testing.cases.evidence import EvidenceCases
from batchport.testing.cases.finding import FindingCases
from batchport.testing.cases.polling import PollingCases
from batchport.testing.cases.starting import StartingCases
from batchport.testing.cases.submitting import SubmittingCases
from batchport.testing.cases.working import WorkingCases

__all__ = ["BackendConformance"]


# pytest runs the cases of the last base first.
class BackendConformance(
    WorkingCases,
    ArrayCases,
    EvidenceCases,
    FindingCases,
    CancellingCases,
    PollingCases,
    SubmittingCases,
    StartingCases,
):
    """What every backend must do. Subclass it, and define the fixture `backend`, of scope class.

    Which cases are run is found out at run time, after `open`, by the adapter's limits and by the optional
    methods that it overrides. A subclass may add cases of its own and set `patience_s`; one that
    redefines a standard case is refused with a UsageError, since its run would prove less than it seems to.
    """

    def __init_subclass__(cls, **more: object) -> None:
        """Refuse a subclass that redefines a case."""
        super().__init_subclass__(**more)
        replaced = sorted(name for name in vars(cls) if name.startswith("test_") and hasattr(BackendConformance, name))
        if replaced:
            raise UsageError(
                f"{cls.__name__} redefines {', '.join(replaced)}, of the conformance suite: "
                "give your own case another name. A standard case cannot be replaced, since a backend "
                "that passes must have passed the same cases as every other"
            )
