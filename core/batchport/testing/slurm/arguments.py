"""parse(): the options of a command, as getopt_long takes them in Slurm, and what goes wrong with them."""

from __future__ import annotations

import getopt
import sys

from .state import State, folder_of_environment

__all__ = ["VERSION", "controller_is_down", "open_state", "parse"]

VERSION = "slurm-wlm 22.05.8"
DOWN = "Unable to contact slurm controller (connect failure)"


def parse(command: str, arguments: list[str], short: str, long: str, *, code: int) -> tuple[dict[str, str], list[str]]:
    """Return the options by their long names, and the other arguments.

    `short` pairs a letter with the long name that it stands for, `n=name n=`; `long` lists those without one. A "="
    behind a name means that it takes a value. A wrong option ends the command with `code`, as the real one does.
    """
    pairs = [pair.split("=", 1) for pair in short.split()]
    names = [name for _, name in pairs] + long.split()
    letters = {f"-{letter}": name.rstrip("=") for letter, name in pairs}
    word = "".join(letter + (":" if name.endswith("=") else "") for letter, name in pairs)
    try:
        found, rest = getopt.gnu_getopt(arguments, word, [*names, "version", "help"])
    except getopt.GetoptError as error:
        option = f"--{error.opt}" if len(error.opt) > 1 else error.opt
        if error.msg.endswith("not recognized"):
            said = f"unrecognized option '{option}'" if len(error.opt) > 1 else f"invalid option -- '{option}'"
        else:
            said = f"option '{option}' requires an argument"
        sys.stderr.write(f'{command}: {said}\nTry "{command} --help" for more information\n')
        sys.exit(code)
    options = {letters.get(name, name.removeprefix("--")): value for name, value in found}
    if "version" in options:
        print(VERSION)  # noqa: T201 - a command's answer
        sys.exit()
    return options, rest


def open_state() -> State:
    """Return the simulated cluster's state, its controller seen to."""
    state = State(folder_of_environment())
    if state.see_to_controller():
        state = State(state.folder)
    return state


def controller_is_down(state: State, prefix: str) -> bool:
    """Return whether the simulated controller does not answer, and say so after `prefix`."""
    down = bool(state.closed or state.faults.get("controller_down"))
    if down:
        sys.stderr.write(f"{prefix}: {DOWN}\n")
    return down
