"""A Scaler cluster's tasks: `nox -s bench -- scaler`. What it measures is in `_scaler_runs.py`."""

import sys

# This file has the name of the package that it measures, which must be found first.
sys.path.append(sys.path.pop(0))

from _scaler_runs import main

if __name__ == "__main__":
    sys.exit(main())
