"""A plan of recipes, as a notebook's parameter lists them, and the models trained by each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Any, get_type_hints

from torch import Tensor, nn

from lab.data import LOADERS, load
from lab.images import Dataset
from lab.networks import ARCHITECTURES, build
from lab.training.recipe import Recipe
from lab.training.train import train
from rebasin.weights import take

NEEDED = ("dataset", "epochs", "models")
OPTIONAL = ("held_out", "chunk", "section")


@dataclass(frozen=True)
class Planned:
    """An entry of a plan: its ``name``, the data set, and ``models`` trained by a recipe to each of the ``epochs``."""

    name: str
    dataset: str
    recipe: Recipe
    epochs: tuple[int, ...]
    models: int
    held_out: int = 0  # training images that no model is trained on
    chunk: int = 1  # models that go through at once
    section: str = ""  # the question that the models are trained for, where a notebook asks several

    def columns(self, epochs: int) -> dict[str, Any]:
        """What a table says of these models after so many epochs: a column for each part of the recipe."""
        return {"recipe": self.name, "dataset": self.dataset, **asdict(self.recipe), "epochs": epochs}

    @property
    def setting(self) -> dict[str, Any]:
        """What tables say of these models where a run has no others: the columns that claims and chapters look at."""
        columns = self.columns(self.epochs[-1])
        return {name: columns[name] for name in ("dataset", "architecture", "width", "weight_decay", "epochs", "seed")}


def read_plan(entries: Sequence[Mapping[str, Any]]) -> list[Planned]:
    """The entries of a plan, each with its name under ``recipe``: see ``read_networks``."""
    plan = []
    for entry in entries:
        if not isinstance(entry, Mapping):
            raise ValueError(f"an entry of the plan must be a dict, with its name under 'recipe': got {entry!r}")
        rest = dict(entry)
        name = rest.pop("recipe", None)
        if not isinstance(name, str):
            raise ValueError(f"an entry of the plan lacks its name, 'recipe': {rest!r}")
        plan.append(read_networks(rest, name))
    return plan


def read_networks(entry: Mapping[str, Any], name: str = "networks") -> Planned:
    """Which networks to train, from ``dataset``, ``epochs``, ``models``, and whatever of Recipe's fields.

    An entry may have ``held_out``, ``chunk`` and ``section`` besides. Raises ValueError, with the ``name``, for a key
    that is missing or not known, a value of another type or out of range, and as Recipe does.
    """
    known = [field.name for field in fields(Recipe)]
    types = get_type_hints(Planned) | get_type_hints(Recipe)
    for key in NEEDED:
        if key not in entry:
            raise ValueError(f"{name!r} lacks {key!r}")
    for key, value in entry.items():
        if key not in (*NEEDED, *OPTIONAL, *known):
            raise ValueError(
                f"{name!r} has an unknown key {key!r}: there are {', '.join([*NEEDED, *OPTIONAL, *known])}"
            )
        if key != "epochs" and not _is(value, types[key]):
            raise ValueError(f"{key!r} of {name!r} must be of type {types[key].__name__}: got {value!r}")
    _check_ranges(name, entry)
    recipe = Recipe(**{key: value for key, value in entry.items() if key in known})
    rest = {key: entry[key] for key in OPTIONAL if key in entry}
    return Planned(name, entry["dataset"], recipe, tuple(entry["epochs"]), entry["models"], **rest)


def _is(value: Any, kind: type) -> bool:
    """Whether a value is of this type; a whole number is a float, too, and a truth value nothing but itself."""
    return isinstance(value, (float, int) if kind is float else kind) and isinstance(value, bool) == (kind is bool)


def _check_ranges(name: str, entry: Mapping[str, Any]) -> None:
    """Raise ValueError for what could only be found out when the entry's turn to be trained has come."""
    epochs = entry["epochs"]
    whole = isinstance(epochs, list | tuple) and all(_is(each, int) for each in epochs)
    if not whole or not epochs or min(epochs) < 1 or list(epochs) != sorted(set(epochs)):
        raise ValueError(f"'epochs' of {name!r} must be a list of ascending epochs from 1: got {epochs!r}")
    for key, known in (("dataset", LOADERS), ("architecture", ARCHITECTURES)):
        if key in entry and entry[key] not in known:
            raise ValueError(f"unknown {key} {entry[key]!r} of {name!r}: there are {', '.join(known)}")
    for least, keys in ((1, ("models", "chunk", "width", "batch_size")), (0, ("held_out", "seed", "weight_decay"))):
        for key in keys:
            if entry.get(key, least) < least:
                raise ValueError(f"{key!r} of {name!r} must be {least} at least: got {entry[key]!r}")


def train_plan(
    plan: Sequence[Planned], device: str
) -> Iterator[tuple[Planned, int, Dataset, nn.Module, dict[str, Tensor], float]]:
    """Train every entry, or read its models from the cache, and yield them at each of its epochs.

    Yields the entry, the epochs, the data set, the model, the weights (models, ...), and the seconds that training took
    up to there since the epochs before.
    """
    open_once = cache(load)
    for planned in plan:
        data = open_once(planned.dataset, planned.held_out)
        model = build(planned.recipe.architecture, data, planned.recipe.width)
        trained = train(planned.recipe, data, planned.models, planned.epochs, device, planned.chunk)
        seconds, before = float(trained.seconds.sum()), 0
        for snapshot, epochs in enumerate(planned.epochs):
            weights = take(trained.weights, snapshot)
            yield planned, epochs, data, model, weights, seconds * (epochs - before) / planned.epochs[-1]
            before = epochs
