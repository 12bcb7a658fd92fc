"""Code that computes what older code computed, as ``rekey`` found: what the older code kept is read by it, too."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from lab.bookkeeping.code import ROOT


def cache_folder() -> Path:
    """Where weights and decoded data are kept: ``REBASIN_CACHE``, by default .cache in the project's folder."""
    return Path(os.environ.get("REBASIN_CACHE") or ROOT / ".cache")


def oldest(code: str) -> str:
    """The fingerprint of the oldest code that computes what the code of this fingerprint does: often its own."""
    return _known().get(code, code)


def with_pairs(pairs: Mapping[str, str]) -> dict[str, str]:
    """What this cache knows, and that the code of each fingerprint computes what that of the one beside it did."""
    known = _known()
    for code, older in pairs.items():
        if known.get(older, older) != code:  # a change that was taken back
            known[code] = known.get(older, older)
    return known


def notes() -> Path:
    """The file in which this cache has what is known."""
    return cache_folder() / "same_code.json"


def _known() -> dict[str, str]:
    try:
        known: dict[str, str] = json.loads(notes().read_text())
    except FileNotFoundError:
        return {}
    return known
