"""Which commit the code is a checkout of, and whether it is as committed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from lab.bookkeeping.code import PACKAGES, ROOT


def commit() -> str | None:
    """The commit that this project's folder is a checkout of; None where it is none, as in another's repository."""
    top = git("rev-parse", "--show-toplevel")
    return git("rev-parse", "HEAD") if top and Path(top).resolve() == ROOT else None


def is_clean() -> bool:
    """Whether all code is as committed, and no file of code is there besides."""
    # An earlier step of the same run may have written its tables: they are no code.
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
    added = git("status", "--porcelain", "--untracked-files=all", "--", *PACKAGES, "notebooks")
    return commit() is not None and changed == added == ""


def git(*arguments: str) -> str | None:
    """What git says of the project's folder; None if it fails."""
    # Git's hooks name a repository by such variables, which need not be this one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
