"""`python -m batchport.runner`: the command of every job."""

import gc
import os

# Loading modules makes much and frees nothing, so looking for garbage only costs. The child turns it on again.
gc.disable()

from batchport.runner.pack import main  # noqa: E402

if __name__ == "__main__":
    # At once, since everything is written by now: an interpreter that clears up first takes a tenth of a
    # short job.
    os._exit(main())
