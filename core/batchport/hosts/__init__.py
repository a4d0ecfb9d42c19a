"""Where tasks come from and outcomes go: `executor`, the in-process host, and `scaler`, a worker of a Scaler cluster.

A host makes Tasks, gives them to a BatchWorker and receives their Outcomes. It pickles what goes out and
is the only one to unpickle what comes back. The worker knows none of them.
"""
