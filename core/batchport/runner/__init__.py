"""The runner: what a job runs. `python -m batchport.runner`, started by the worker's command, never by people.

A small parent reads the job's manifest and payload, forks a child for each task, `width` at a time, and
leaves in the store what became of it. The parent alone uses the store and never unpickles; the child
does nothing else than unpickle, call and hand the answer back. So a task that crashes, hangs or is killed
costs itself only, and is still reported.

    pack.py     the loop over a job's tasks: what is skipped, run, ended, committed; the exit code
    payload.py  the payload, found, checked and taken apart; the code that came along, unzipped
    child.py    one task's process: fork, call, answer, output, end
    remote.py   a store that is no folder, in a process of its own
    memory.py   whether the kernel killed for want of memory
    report.py   every sentence that a failing task says

Exit codes, so that the backend's own tools tell the truth:

    0    every task succeeded, or there was nothing to do: done before, stopped, or the job is superseded
    1    at least one task did not succeed; the store says which and why
    2    called wrongly
    74   the store could not be reached, read or written, for half a minute or until told to end
    143  told to end, by SIGTERM or SIGINT

A task is over when its function has returned and its process has ended. As in a process that
multiprocessing started, threads are waited for and exit functions run; but what is still there five seconds
after the return, or left behind in the task's process group, is killed.

Imports are what a job's start costs: the parent loads the standard library only. cloudpickle is loaded in
the child, obstore in a process of its own, and only for a store that is not a folder.
"""
