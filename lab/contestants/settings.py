"""The settings of the arena, as its notebook lists them: which networks are merged, by what, and at which sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from lab.contestants import contestants
from lab.contestants.fine_tuned import tuned
from lab.images import Dataset
from lab.networks import ARCHITECTURES
from lab.tasks import TASKS, TUNED, learned_tasks
from lab.training.plan import Planned, read_networks
from lab.training.train import train
from rebasin.weights import stack, take

KEYS = ("setting", "tasks", "foundation", "parents", "images", "test_images", "attacked", "methods", "networks")


@dataclass(frozen=True)
class Setting:
    """Networks of one plan, merged ``parents`` at a time by several ``methods``, each at its sizes.

    ``tasks`` is ``"halves"``, where the two parents have a half of the classes and a head each, ``"coded"``, where they
    share one head of class codes, or ``"whole"``. For ``"tuned"`` and ``"tuned alike"`` they are trained on all classes
    for ``foundation`` epochs, and fine-tuned on halves for those of the plan (see ``fine_tuned.tuned``). Methods see so
    many ``images`` of each task's training set, and are judged on at most ``test_images`` of its test set, of which
    ``attacked`` are attacked.
    """

    name: str
    tasks: str
    foundation: int
    parents: int
    images: int
    test_images: int
    attacked: int
    methods: Mapping[str, tuple[float, ...]]
    networks: Planned

    @property
    def nodes(self) -> int:
        """How many merges each method makes at a size."""
        return self.networks.models // self.parents

    @property
    def merges(self) -> int:
        """How many merges are tried in all."""
        return self.nodes * sum(map(len, self.methods.values()))

    @property
    def columns(self) -> dict[str, Any]:
        """What a table says of the setting: its columns, those of the recipe among them."""
        networks = self.networks
        return {
            "setting": self.name, "tasks": self.tasks, "parents": self.parents, "images": self.images,
            "dataset": networks.dataset, **asdict(networks.recipe), "epochs": networks.epochs[-1],
        }  # fmt: skip


def read_settings(entries: Sequence[Mapping[str, Any]]) -> list[Setting]:
    """The settings of a list.

    Each has ``setting``, its name; ``methods``, the sizes at which each is tried; and ``networks``, a plan as
    ``read_networks`` takes it. Without ``tasks`` they are ``"halves"``; those that are tuned have a ``foundation``, and
    no others. Without ``parents`` there are 2, without ``images`` 1000, without ``test_images`` 5000, and without
    ``attacked`` none. Raises ValueError, with the setting's name, for what does not fit together, and as
    ``read_networks`` does.
    """
    settings: list[Setting] = []
    for entry in entries:
        name = entry.get("setting") if isinstance(entry, Mapping) else None
        if not isinstance(name, str):
            raise ValueError(f"a setting of the arena lacks its name, 'setting': {entry!r}")
        if name in [setting.name for setting in settings]:
            raise ValueError(f"two settings of the arena are called {name!r}: each row of the tables names its setting")
        for key in ("methods", "networks"):
            if key not in entry:
                raise ValueError(f"the setting {name!r} lacks {key!r}")
        for key in entry:
            if key not in KEYS:
                raise ValueError(f"the setting {name!r} has an unknown key {key!r}: there are {', '.join(KEYS)}")
        networks = read_networks(entry["networks"], name)
        tasks, parents = entry.get("tasks", "halves"), entry.get("parents", 2)
        images = entry.get("images", 1000), entry.get("test_images", 5000), entry.get("attacked", 0)
        contestants(list(entry["methods"]))  # each is known
        if tasks not in TASKS:
            raise ValueError(f"tasks of {name!r} are {', '.join(TASKS)}, not {tasks!r}")
        if tasks == "coded" and not ARCHITECTURES[networks.recipe.architecture].codes:
            raise ValueError(f"networks of {name!r} must have class codes, as mlp_codes has, to share one head")
        foundation = entry.get("foundation", 0)
        if not isinstance(foundation, int) or (foundation > 0) != (tasks in TUNED):
            raise ValueError(
                f"{name!r} has a 'foundation', epochs from 1, if it is tuned, and else none: {foundation!r}"
            )
        if parents < 2 or (tasks != "whole" and parents != 2):
            raise ValueError(f"{name!r} merges {parents} at a time: of halves there are two, of wholes two or more")
        if networks.models % parents:
            raise ValueError(f"{networks.models} networks of {name!r} are not shared out into groups of {parents}")
        methods = {}
        for method, sizes in entry["methods"].items():
            methods[method] = tuple(float(size) for size in sizes)
            if not methods[method] or not all(1 <= size <= parents for size in methods[method]):
                raise ValueError(f"sizes of {method!r} in {name!r} are a list from 1 to {parents}: got {sizes!r}")
        settings.append(Setting(name, tasks, foundation, parents, *images, methods, networks))
    return settings


def train_parents(setting: Setting, dataset: Dataset, device: str) -> tuple[list[dict[str, Tensor]], float]:
    """The parents (n, ...) of each node, and the seconds that their training took.

    Parents with a task each are trained by seeds of their own, for otherwise they would begin alike, in one basin.
    """
    tasks = learned_tasks(dataset, setting.tasks)
    networks, per_task = setting.networks, setting.networks.models // len(tasks)
    if setting.tasks in TUNED:
        alike = setting.tasks == "tuned alike"
        fine, seconds = tuned(networks, tasks, dataset, setting.foundation, alike, device)
        return [stack([take(of_task, node) for of_task in fine]) for node in range(setting.nodes)], seconds
    trained = []
    for number, task in enumerate(tasks):
        recipe = replace(networks.recipe, seed=networks.recipe.seed + number)
        trained.append(train(recipe, task, per_task, networks.epochs, device, networks.chunk))
    seconds = sum(float(one.seconds.sum()) for one in trained)
    if len(tasks) > 1:
        return [stack([take(one.last, node) for one in trained]) for node in range(setting.nodes)], seconds
    groups = [slice(node * setting.parents, (node + 1) * setting.parents) for node in range(setting.nodes)]
    return [{key: tensor[group] for key, tensor in trained[0].last.items()} for group in groups], seconds
