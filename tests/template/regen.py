"""Render the template into generated_examples/, or with --check prove that doing so would change nothing.

Called by `nox -s regen`. Examples are written by this program alone. They depend on the checkout that they are in, by
a relative path, and the two lines of a machine and a moment (`_commit`, `_src_path`) are left out of their answers.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import copier

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "generated_examples"
ANSWERS = {
    "aws_batch": {
        "starter": "aws_batch",
        "package_name": "batchport_aws_batch",
        "backend_name": "aws-batch",
        "batchport_source": "../..",
    },
    "blank": {"starter": "blank", "package_name": "my_backend", "batchport_source": "../.."},
    "slurm": {
        "starter": "slurm",
        "package_name": "batchport_slurm",
        "backend_name": "slurm",
        "batchport_source": "../..",
    },
}
"""The answers that give each example, by the name of its folder."""


def main() -> None:
    """Write the examples. With --check write nothing, and exit 1 with the name of each file that differs."""
    wanted, there = rendered(), {name: (ROOT / name).read_bytes() for name in known_to_git("generated_examples")}
    differing = sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))
    if "--check" in sys.argv[1:]:
        if differing:
            sys.exit("\n".join(["not as the template renders them:", *differing, "-> nox -s regen writes them anew"]))
        return
    for name in differing:
        path = ROOT / name
        if name in wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(wanted[name])
        else:
            path.unlink()


def known_to_git(*paths: str) -> list[str]:
    """Return the files under `paths`, committed or not, without what .gitignore names and what was deleted."""
    listing = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *paths)
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return [name for name in names if name and (ROOT / name).is_file()]


def rendered() -> dict[str, bytes]:
    """Return every file of every example by its name from the root, from the template as it stands on disk."""
    files = {}
    with TemporaryDirectory() as folder:
        template = Path(folder, "template")
        for name in known_to_git("copier.yml", "template"):
            (template / name).parent.mkdir(parents=True, exist_ok=True)
            (template / name).write_bytes((ROOT / name).read_bytes())
        for example, answers in ANSWERS.items():
            made = Path(folder, example)
            copier.run_copy(str(template), made, data=answers, defaults=True, quiet=True)
            for path in made.rglob("*"):
                if path.is_file():
                    files[f"generated_examples/{example}/{path.relative_to(made)}"] = _anywhere(path)
    return files


def _anywhere(path: Path) -> bytes:
    lines = path.read_bytes().splitlines(keepends=True)
    if path.name == ".copier-answers.yml":
        lines = [line for line in lines if not line.startswith((b"_commit:", b"_src_path:"))]
    return b"".join(lines)


if __name__ == "__main__":
    main()
