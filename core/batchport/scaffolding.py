"""template_folder(): where the template for a new backend is. Called by `batchport demo`."""

from __future__ import annotations

from pathlib import Path

__all__ = ["template_folder"]


def template_folder() -> Path:
    """Return the folder that copier takes as source: the one in the wheel, or else the checkout.

    A checkout is a git repository, of which copier renders the newest tag unless it gets `vcs_ref="HEAD"`.
    """
    here = Path(__file__).resolve().parent
    shipped = here / "scaffold"
    return shipped if shipped.is_dir() else here.parents[1]
