"""How Slurm writes times and file names."""

from __future__ import annotations

import os
import pwd
import time

from .job import Job

__all__ = ["duration", "file_name", "minutes", "moment", "timestamp"]

NO_INDEX = 4294967294
"""What %a becomes where there is no array."""


def timestamp(seconds: float | None, missing: str = "N/A") -> str:
    """Return 2026-11-24T12:00:00, in local time."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(seconds)) if seconds else missing


def duration(seconds: float, *, full: bool = False) -> str:
    """Return 1-02:03:04, as far as needed: 3:04 at the least, 00:03:04 if `full`."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}-{hour:02}:{minute:02}:{second:02}"
    if full:
        return f"{hour:02}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def minutes(words: str) -> int | None:
    """Return the minutes of a --time (30, 30:00, 1:30:00, 1-12, 1-12:30:00), None for no limit; ValueError if wrong.

    Seconds are rounded up to a minute: https://slurm.schedmd.com/sbatch.html#OPT_time
    """
    if words.lower() in {"infinite", "unlimited", "-1"}:
        return None
    days, dash, rest = words.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minute, second = [*parts, 0, 0][:3]
    elif len(parts) == 3:  # noqa: PLR2004 - hours, minutes, seconds
        hours, minute, second = parts
    else:
        hours, minute, second = 0, *[*parts, 0][:2]
    return int(days or 0) * 1440 + hours * 60 + minute + (second > 0)


def moment(words: str) -> float:
    """Return the time of now-1hour, 2026-11-24, 2026-11-24T12:00[:00], today or 12:30; ValueError if it is none."""
    now = time.time()
    if words.startswith("now"):
        sign, count = words[3:4], words[4:]
        digits = "".join(each for each in count if each.isdecimal())
        units = {"": 1, "second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800}
        unit = units.get(count[len(digits) :].rstrip("s"))
        if not words[3:]:
            return now
        if sign not in {"+", "-"} or not digits or unit is None:
            raise ValueError(words)
        return now + int(sign + digits) * unit
    today = time.strftime("%Y-%m-%d")
    if words in {"today", "midnight"}:
        words = today
    if "-" not in words:
        words = f"{today}T{words}"
    for form in ("%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"):
        try:
            return time.mktime(time.strptime(words, form))
        except ValueError:
            continue
    raise ValueError(words)


def file_name(pattern: str, job: Job) -> str:
    """Fill in %x %j %A %a %u %N (https://slurm.schedmd.com/sbatch.html#SECTION_FILENAME-PATTERN)."""
    index = NO_INDEX if job.index is None else job.index
    values: dict[str, object] = {
        "x": job.name,
        "j": job.id,
        "A": job.array or job.id,
        "a": index,
        "u": pwd.getpwuid(os.getuid()).pw_name,
        "N": job.nodes[0][0] if job.nodes else "",
        "n": 0,
        "t": 0,
        "s": "batch",
        "%": "%",
    }
    parts, rest = [], pattern
    while "%" in rest:
        before, _, rest = rest.partition("%")
        digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
        letter, rest = rest[len(digits) : len(digits) + 1], rest[len(digits) + 1 :]
        value = str(values[letter]) if letter in values else f"%{digits}{letter}"
        parts += [before, value.rjust(int(digits), "0") if digits and letter in values else value]
    return "".join(parts) + rest
