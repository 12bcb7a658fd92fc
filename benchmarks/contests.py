"""What ``make bench`` times: each contest sets up ours, the floor beneath it, and the peers that it is held against.

The floor is what cannot be left out: of matching the assignments alone, by scipy, on the scores as they come; of
training and attacks the matrix products; of tracing torch's export; of PLeaS the forward passes. All is made here:
MLPs are trained for some seconds on scikit-learn's digits, enlarged to 3 x 32 x 32 pixels, since an assignment's time
depends on what it is about; where time depends on shapes alone, weights and images are random.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from unittest import mock

import foolbox
import torch
import torchvision
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, interpolate

from benchmarks.matchers import PEERS, Pair, Worker, install_peers, save
from benchmarks.tracing import networks as traced_networks
from benchmarks.turns import Timed, clocked
from lab.contestants import adam
from lab.data import load
from lab.images import Dataset, Split
from lab.measures.attacks import Attack, perturb, surviving
from lab.networks import build
from lab.networks.initial import initial_weights
from lab.training.recipe import Recipe
from lab.training.stack import start, train_epoch
from lab.training.train import train
from rebasin import collect, merge_many, merge_universe, pleas, trace, weight_matching
from rebasin.assignment import solve_assignment
from rebasin.graph import export
from rebasin.merging.pleas import choose_slots
from rebasin.spec import PermutationSpec
from rebasin.weights import Weights, take

EPSILON = 4 / 255


@dataclass(frozen=True)
class Sizes:
    """How large the contests are."""

    width: int = 512  # of the MLPs that are matched, attacked and trained
    merged_width: int = 256  # of those that are merged all at once
    channels: int = 16  # of ResNet20's first layer
    networks: int = 11  # trained MLPs, which make 110 pairs
    pairs: int = 100
    images: int = 2500  # that PLeaS sees
    adam_steps: int = 40  # of 400, which take ten times as long
    attacked: int = 100  # images
    trained: int = 2560  # images


@dataclass(frozen=True)
class Contest:
    """Ours, the floor and the peers by name, each run so many times, on so many threads (None: as torch has them).

    ``beneath`` says what the floor is; ``missing`` are peers that could not be installed.
    """

    ours: Timed
    floor: Timed
    beneath: str
    peers: Mapping[str, Timed]
    rounds: int = 1
    threads: int | None = None
    missing: Sequence[str] = ()


SetUp = Callable[[Sizes], AbstractContextManager[Contest]]


# ---- matching and merging


@contextmanager
def a_pair_of_mlps(sizes: Sizes) -> Iterator[Contest]:
    spec, weights = trained_mlps(sizes, sizes.width)
    with matched(spec, take(weights, 0), take(weights, 1), tuple(PEERS), rounds=3) as contest:
        yield contest


@contextmanager
def a_pair_of_resnet20(sizes: Sizes) -> Iterator[Contest]:
    model = build("resnet20_ln", enlarged_digits(), sizes.channels)
    a, b = (initial_weights(model, "torch", seed) for seed in (0, 1))
    with matched(trace(model, torch.zeros(1, 3, 8, 8)), a, b, ("sd-mecha",), rounds=3) as contest:
        yield contest


@contextmanager
def a_pair_of_resnet50(sizes: Sizes) -> Iterator[Contest]:
    model = torchvision.models.resnet50(weights=None)
    a, b = (initial_weights(model, "torch", seed) for seed in (0, 1))
    with matched(trace(model, torch.zeros(1, 3, 64, 64)), a, b, ("sd-mecha",), rounds=1) as contest:
        yield contest


@contextmanager
def matched(spec: PermutationSpec, a: Weights, b: Weights, names: Sequence[str], rounds: int) -> Iterator[Contest]:
    """Weight matching of a pair in one visiting order, on one thread; each peer has a process of its own."""
    peers = install_peers()
    ours = partial(weight_matching, spec, a, b)
    with tempfile.TemporaryDirectory() as folder:
        path = save(plain_pair(spec, a, b), Path(folder) / "pair.pt")
        workers = []
        for name in names if peers else ():
            with suppress(RuntimeError):  # it was installed for other versions than there are
                workers.append(Worker(name, path, peers))
        timed = {worker.name: partial(seconds_of, worker) for worker in workers}
        missing = [name for name in names if name not in timed]
        try:
            yield Contest(clocked(ours), partial(assignments_of, ours), "assignments", timed, rounds, 1, missing)
        finally:
            for worker in workers:
                worker.close()


def seconds_of(worker: Worker) -> float:
    """What a worker's matcher takes in the visiting order that ``weight_matching`` takes by default."""
    return worker.run(0)["seconds"]


def plain_pair(spec: PermutationSpec, a: Weights, b: Weights) -> Pair:
    """A pair as the peers take it: what is matched, with one group an axis."""
    axes: dict[str, list[str | None]] = {key: [None] * a[key].ndim for key in spec.weights}
    for key, groups in axes.items():
        for part in spec.parts[key]:
            groups[part.axis] = part.group
    return Pair({key: a[key].clone() for key in axes}, {key: b[key].clone() for key in axes}, axes)


@contextmanager
def many_pairs(sizes: Sizes) -> Iterator[Contest]:
    """All pairs in one call on all cores.

    The floor is that of a tenth of them, ten times; the peer that of one pair, as often as there are pairs.
    """
    spec, weights = trained_mlps(sizes, sizes.width)
    n = len(next(iter(weights.values())))
    ordered = [(i, j) for i in range(n) for j in range(n) if i != j][: sizes.pairs]
    a, b = (take(weights, torch.tensor(chosen)) for chosen in zip(*ordered, strict=True))
    tenth = slice(0, len(ordered), 10)
    few = partial(weight_matching, spec, take(a, tenth), take(b, tenth))
    times = len(ordered) / len(ordered[tenth])
    with matched(spec, take(a, 0), take(b, 0), ("sd-meh",), rounds=1) as single:
        peers = {f"{name}, one by one": scaled(run, len(ordered)) for name, run in single.peers.items()}
        yield Contest(
            clocked(partial(weight_matching, spec, a, b)),
            scaled(partial(assignments_of, few), times),
            "assignments",
            peers,
            missing=single.missing,
        )


@contextmanager
def merge_of_eight(sizes: Sizes) -> Iterator[Contest]:
    spec, weights = trained_mlps(sizes, sizes.merged_width)
    ours = partial(merge_many, spec, take(weights, slice(0, 8)))
    yield Contest(clocked(ours), partial(assignments_of, ours), "assignments", {}, threads=1)


@contextmanager
def universe_of_five(sizes: Sizes) -> Iterator[Contest]:
    spec, weights = trained_mlps(sizes, sizes.merged_width)
    ours = partial(merge_universe, spec, take(weights, slice(0, 5)))
    yield Contest(clocked(ours), partial(assignments_of, ours), "assignments", {}, threads=1)


def assignments_of(work: Callable[[], object]) -> float:
    """The seconds that scipy takes for all assignments that some work makes, in as many threads as it makes them."""
    seconds = []

    def timed(scores: Tensor) -> Tensor:
        began = time.perf_counter()
        for matrix in scores.reshape(-1, *scores.shape[-2:]).numpy():
            linear_sum_assignment(matrix, maximize=True)
        seconds.append(time.perf_counter() - began)
        return solve_assignment(scores)

    with mock.patch("rebasin.matching.scores.solve_assignment", timed):
        work()
    return sum(seconds) / torch.get_num_threads()


def scaled(run: Timed, times: float) -> Timed:
    """A contestant that does a part of the work: its seconds, so many times."""
    return lambda: times * run()


def trained_mlps(sizes: Sizes, width: int) -> tuple[PermutationSpec, Weights]:
    """MLPs of three hidden layers that were trained on the enlarged digits: their spec, and weights (n, ...)."""
    data = enlarged_digits()
    recipe = Recipe(width=width, batch_size=128)
    return trace(build("mlp", data, width), data.example), train(recipe, data, sizes.networks, (3,), "cpu", 1).last


def enlarged_digits() -> Dataset:
    """scikit-learn's digits as images of 3 x 32 x 32 pixels."""
    digits = load("digits")

    def enlarged(split: Split) -> Split:
        pixels = interpolate(split.images.float(), size=32, mode="bilinear").round().to(torch.uint8)
        return Split(pixels.expand(-1, 3, -1, -1).contiguous(), split.labels)

    train_split, held_out, test = map(enlarged, (digits.train, digits.held_out, digits.test))
    return replace(digits, train=train_split, held_out=held_out, test=test, mean=(0.5,) * 3, std=(0.5,) * 3)


# ---- the rest


@contextmanager
def pleas_of_two(sizes: Sizes) -> Iterator[Contest]:
    """Gram matrices and least squares, against the 400 steps of Adam that the authors' code takes, written anew."""
    data = random_images(sizes.images)
    model = build("resnet20_bn", data, sizes.channels)
    spec = trace(model, data.example)
    models = [initial_weights(model, "torch", seed) for seed in (0, 1)]
    batches = list(data.train.pixels.split(250))
    few = collect(spec, models, batches[:1], model=model)
    slots = choose_slots(few)[0]

    @torch.no_grad()
    def forward() -> None:
        for batch in batches:
            for weights in models:
                functional_call(model, weights, (batch,))

    def ours() -> None:
        pleas(collect(spec, models, batches, model=model))

    def by_adam() -> None:
        with mock.patch.object(adam, "STEPS", sizes.adam_steps):
            adam.fit_by_adam(few, slots, batches[0])

    peers = {"400 steps of Adam": scaled(clocked(by_adam), 400 / sizes.adam_steps)}
    yield Contest(clocked(ours), clocked(forward), "forward passes", peers)


@contextmanager
def tracing(sizes: Sizes) -> Iterator[Contest]:
    export(nn.Linear(2, 2), (torch.randn(1, 2),))  # what torch loads at its first export

    def each(work: Callable[[nn.Module, Tensor], object]) -> float:
        return sum(clocked(partial(work, model, example))() for _, model, example in traced_networks())

    exported = partial(each, lambda model, example: export(model, (example,)))
    yield Contest(partial(each, trace), exported, "export", {})


@contextmanager
def attacks_as_measured(sizes: Sizes) -> Iterator[Contest]:
    """Which images survive: an image is dropped as soon as it is misclassified."""
    with attacked(sizes, surviving, epsilons=[EPSILON]) as contest:
        yield contest


@contextmanager
def attacks_to_the_end(sizes: Sizes) -> Iterator[Contest]:
    """Every image goes through every step, as the peer and the floor have it."""
    with attacked(sizes, perturb, epsilon=EPSILON) as contest:
        yield contest


@contextmanager
def attacked(sizes: Sizes, attack_all: Callable[..., Tensor], **bound: object) -> Iterator[Contest]:
    """PGD-20 on eight MLPs."""
    data = enlarged_digits()
    model = build("mlp", data, sizes.width).eval()
    _, weights = trained_mlps(sizes, sizes.width)
    weights = take(weights, slice(0, 8))
    some = data.test.sample(sizes.attacked)
    attack = Attack("cross_entropy", "linf", steps=20)
    ours = partial(attack_all, model, weights, some.pixels, some.labels, attack=attack, device="cpu", **bound)
    theirs = partial(by_foolbox, model, weights, some, attack.steps)
    floor = partial(products, weights, len(some.labels), attack.steps, inputs_alone=True)
    yield Contest(clocked(ours), clocked(floor), "matrix products", {"foolbox": clocked(theirs)}, rounds=3)


def by_foolbox(model: nn.Module, weights: Weights, some: Split, steps: int) -> None:
    """foolbox's PGD on one network after another."""
    networks = build_each(model, weights)
    for network in networks:
        bounded = foolbox.PyTorchModel(network.eval(), bounds=(0, 1), device="cpu")
        attack = foolbox.attacks.LinfPGD(rel_stepsize=2.5 / steps, steps=steps)
        attack(bounded, some.pixels, some.labels, epsilons=EPSILON)


@contextmanager
def training(sizes: Sizes) -> Iterator[Contest]:
    """An epoch of eight MLPs, stacked and trained as one; the peer is a plain loop of torch's over them."""
    data = random_images(sizes.trained)
    recipe = Recipe(width=sizes.width, batch_size=512)
    model = build("mlp", data, sizes.width)
    numbers = range(8)
    images, labels = data.train.images, data.train.labels

    def stacked() -> None:
        weights, optimiser = start(model, recipe, numbers, "cpu")
        for _ in train_epoch(model, recipe, weights, optimiser, images, labels, numbers, 0):
            pass

    def one_by_one() -> None:
        for number in numbers:
            network = build("mlp", data, sizes.width).train()
            network.load_state_dict(initial_weights(model, "torch", number))
            optimiser = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
            for batch in torch.randperm(len(labels)).split(512):
                optimiser.zero_grad()
                cross_entropy(network(images[batch].float() / 255), labels[batch]).backward()
                optimiser.step()

    weights, _ = start(model, recipe, numbers, "cpu")
    floor = partial(products, weights, len(labels), 1, inputs_alone=False)
    peers = {"torch, one by one": clocked(one_by_one)}
    yield Contest(clocked(stacked), clocked(floor), "matrix products", peers, rounds=3)


@torch.no_grad()
def products(weights: Weights, images: int, passes: int, inputs_alone: bool, batch: int = 500) -> None:
    """The matrix products of so many forward and backward passes: of these to the pixels, or to the weights, too."""
    matrices = [tensor for tensor in weights.values() if tensor.ndim > 2]  # (n, outputs, inputs)
    work = [
        (matrix, torch.ones(batch, matrix.shape[1]), torch.ones(batch, matrix.shape[0]))
        for stacked in matrices
        for matrix in stacked.detach()
    ]
    for _ in range(passes * images // batch or 1):
        for matrix, x, gradient in work:
            x @ matrix.T
            gradient @ matrix
            if not inputs_alone:
                gradient.T @ x


def build_each(model: nn.Module, weights: Weights) -> list[nn.Module]:
    """Networks (n, ...) as modules."""

    class Alone(nn.Module):
        def __init__(self, own: Weights) -> None:
            super().__init__()
            self.own = own

        def forward(self, x: Tensor) -> Tensor:
            return functional_call(model, self.own, (x,))

    return [Alone(take(weights, number)) for number in range(len(next(iter(weights.values()))))]


def random_images(m: int) -> Dataset:
    """Random images of 3 x 32 x 32 pixels, of ten classes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (m, 3, 32, 32), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.arange(m) % 10)
    return Dataset("", "", split, split, split, (0.5,) * 3, (0.25,) * 3, "")
