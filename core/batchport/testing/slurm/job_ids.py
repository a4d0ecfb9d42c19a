"""How Slurm writes ids and indexes: 12, 12_3, 12_[0,2-3], and the 0-8:2%1 of `sbatch --array`."""

from __future__ import annotations

__all__ = ["array_indexes", "job_id", "ranges"]


def array_indexes(words: str) -> tuple[list[int], int, int]:
    """Return the indexes of `0-8:2%1`, their step and how many may run at once (0: all), or raise ValueError."""
    words, _, at_once = words.partition("%")
    found: set[int] = set()
    by = 1
    for part in words.split(","):
        part, _, step = part.partition(":")  # noqa: PLW2901 - the range without its step
        first, dash, last = part.partition("-")
        by = int(step or 1)
        found.update(range(int(first), int(last) + 1 if dash else int(first) + 1, by))
    if not found or min(found) < 0:
        raise ValueError(words)
    return sorted(found), by, int(at_once or 0)


def job_id(words: str) -> tuple[int, list[int] | None]:
    """Return the job's number and its indexes, None for the whole; ValueError if it is no id."""
    number, underscore, index = words.partition("_")
    return int(number), array_indexes(index.strip("[]"))[0] if underscore else None


def ranges(indexes: list[int]) -> str:
    """Return `0,2-3` for [0, 2, 3]."""
    parts: list[list[int]] = []
    for index in indexes:
        if parts and parts[-1][1] == index - 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
