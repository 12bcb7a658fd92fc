"""Weights on disk: files of safetensors, as people keep and publish them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from rebasin.spec import PermutationSpec
from rebasin.weights import Weights, over, weights_of


def load_weights(path: str | os.PathLike[str], spec: PermutationSpec | None = None) -> dict[str, Tensor]:
    """The weights in a ``.safetensors`` file, or in the files that a ``.safetensors.index.json`` lists.

    They are mapped, not read: an entry takes memory while it is used. So two models are merged that would not fit into
    memory side by side. With ``spec``, entries that are one tensor in the model, as tied embeddings are, are found
    under each of their names, though the file has but one.

    Raises FileNotFoundError, ValueError for another file, and ImportError without the package safetensors.

    >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> spec = rebasin.trace(model, torch.ones(1, 3))
    >>> save_weights(model, folder / "a.safetensors")
    >>> a = load_weights(folder / "a.safetensors")
    >>> rebasin.match(spec, a, model).apply(model)[0].weight.shape
    torch.Size([8, 3])
    """
    path = Path(path)
    weights: dict[str, Tensor] = {}
    for file in _listed(path):
        try:
            with _safetensors().safe_open(file, framework="pt") as opened:
                weights |= {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  it is no dict
        except FileNotFoundError:
            raise
        except Exception as error:  # of a class that the package does not promise
            raise ValueError(f"{file} is no file of safetensors: {error}") from error
    for names in spec.ties if spec is not None else ():
        known = [weights[name] for name in names if name in weights]
        weights |= dict.fromkeys(names, known[0]) if known else {}
    return weights


def save_weights(weights: torch.nn.Module | Weights, path: str | os.PathLike[str]) -> None:
    """Write the weights of a model, a module or a dict of tensors, to a ``.safetensors`` file.

    An older file stays whole until the new one is. Raises TypeError for no weights, ImportError without the package
    safetensors.

    >>> model = nn.Linear(3, 2)
    >>> save_weights(model, folder / "model.safetensors")
    >>> torch.equal(load_weights(folder / "model.safetensors")["weight"], model.weight)
    True
    """
    own = over(weights_of(weights), lambda tensor: tensor.detach().contiguous())
    shared = [tensor.untyped_storage()._cdata for tensor in own.values()]
    for key, tensor in own.items():
        if shared.count(tensor.untyped_storage()._cdata) > 1:
            own[key] = tensor.clone()  # the format has no shared memory
    unfinished = f"{os.fspath(path)}.unfinished"
    # What reads such files asks for this word.
    _safetensors().torch.save_file(own, unfinished, metadata={"format": "pt"})
    os.replace(unfinished, path)


def _listed(path: Path) -> list[Path]:
    """The files that an index lists; a path that is none, alone."""
    if path.suffix != ".json":
        return [path]
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no index of safetensors files: it has no weight_map") from error
    return [path.parent / name for name in dict.fromkeys(names)]


def _safetensors() -> ModuleType:
    """The package, which only those need who have such files."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("weights on disk need the package safetensors: pip install safetensors") from error
    return safetensors
