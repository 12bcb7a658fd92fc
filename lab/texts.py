"""A text that everybody has who has torch, as numbers: the documentation that torch keeps of its own functions."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

CONTEXT = 64  # characters that a language model sees at once
FIRST, LAST = " ", "~"  # the printable characters of ASCII; a new line is one more, and all others are left out
SHORTEST = 100  # letters: what is shorter is no documentation
TESTED = 0.1  # the share of the text, at its end, that no model is trained on


def documentation() -> str:
    """What torch says of its functions, one after another: some 400 000 characters.

    They are the long strings of the module that holds them. Another version of torch has another text, which the data
    set's fingerprint tells. Raises RuntimeError for a torch that keeps its documentation elsewhere.
    """
    path = Path(torch.__file__).with_name("_torch_docs.py")
    if not path.is_file():
        raise RuntimeError(f"torch {torch.__version__} has no file {path.name}, which the data set 'text' is made of")
    strings = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
    return "".join(string for string in strings if isinstance(string, str) and len(string) > SHORTEST)


def as_numbers(text: str) -> np.ndarray:
    """The characters of a text as numbers from 0 to 95, (characters,) in int64."""
    codes = np.array([ord(letter) for letter in text.replace("\n", chr(ord(LAST) + 1))], np.int64) - ord(FIRST)
    return codes[(codes >= 0) & (codes <= ord(LAST) + 1 - ord(FIRST))]


def windows(numbers: np.ndarray) -> tuple[Tensor, Tensor]:
    """A text (characters,) in pieces one after another, and what follows each of their characters: (m, 64) each."""
    count = (len(numbers) - 1) // CONTEXT
    cut = torch.from_numpy(numbers[: count * CONTEXT]), torch.from_numpy(numbers[1 : count * CONTEXT + 1])
    pieces, following = (part.reshape(count, CONTEXT) for part in cut)
    return pieces, following
