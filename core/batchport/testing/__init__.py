"""The conformance suite for adapters: subclass BackendConformance and give it one fixture.

Called by the tests of each backend, like this:

    class TestConformance(BackendConformance):
        @pytest.fixture(scope="class")
        @classmethod
        def backend(cls, tmp_path_factory: pytest.TempPathFactory) -> Backend:
            store = tmp_path_factory.mktemp("store")
            return Backend(adapter=lambda: HouseAdapter(Options()), store=str(store), python=sys.executable)

and by `pytest -p batchport.testing.plugin`, which names the cases that were not run, and why. The two names
below are loaded when first used: a job imports this package for its probe, and may have no pytest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchport.testing.backend import Backend
    from batchport.testing.conformance import BackendConformance

__all__ = ["Backend", "BackendConformance"]


def __getattr__(name: str) -> object:
    if name == "Backend":
        from batchport.testing.backend import Backend

        return Backend
    if name == "BackendConformance":
        from batchport.testing.conformance import BackendConformance

        return BackendConformance
    message = f"module 'batchport.testing' has no attribute {name!r}"
    raise AttributeError(message)
