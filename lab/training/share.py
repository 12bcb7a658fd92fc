"""A share of the networks that a notebook trains: many machines build one cache, each its own part of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from lab.data import load
from lab.training.plan import Planned, read_networks, read_plan
from lab.training.train import train_missing


def planned_networks(parameters: Mapping[str, Any]) -> list[Planned]:
    """The networks that a notebook's parameters list: by dicts such as ``networks``, and lists of them with names.

    Raises ValueError where they list none as they are: the networks of notebook conditions are varied, and those of the
    arena trained on parts of the classes.
    """
    plan = []
    for name, value in parameters.items():
        if isinstance(value, dict) and {"dataset", "epochs", "models"} <= value.keys() and "varied" not in parameters:
            planned = read_networks(value, name)
            # In notebook trees they are those of one tree.
            plan.append(replace(planned, models=planned.models * parameters.get("trees", 1)))
        elif (
            isinstance(value, list) and value and all(isinstance(entry, dict) and "recipe" in entry for entry in value)
        ):
            plan += read_plan(value)
    if not plan:
        raise ValueError("it lists no networks as they are trained, so that there is nothing to share out")
    return plan


def train_share(parameters: Mapping[str, Any], number: int, of: int) -> int:
    """Train every ``of``-th chunk, from the ``number``-th, of each plan in a notebook's parameters, and keep it.

    Gives how many networks were trained: those that the cache has are not trained again.
    """
    open_once = cache(load)
    trained = 0
    for planned in planned_networks(parameters):
        data = open_once(planned.dataset, planned.held_out)
        whole = planned.recipe, data, planned.models, planned.epochs, parameters["device"], planned.chunk
        trained += train_missing(*whole, share=(number, of))
    return trained
