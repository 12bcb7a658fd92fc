"""Matching transformers by rotations: where a permutation may reorder, an orthogonal map may turn.

Once LayerNorm is rewritten, what reads the residual stream divides each token by its length alone, so that the stream
may be turned like a rigid body. So may queries with their keys, and values with what reads them, inside a head. The
closest rotation has a closed form, of the very scores that an assignment is made by (Procrustes; Schönemann 1966). So
every matcher here takes ``best``, the rotation or the permutation of those scores, and is otherwise the same.

All weights here are in float64, for what is turned many times must stay the same network.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.functional import cross_entropy, one_hot

from lab.images import Split
from lab.networks.rewritten import RMSNorm
from rebasin.assignment import solve_assignment
from rebasin.inner_products import inner_product
from rebasin.matching.by_activations import activation_matching
from rebasin.matching.by_weights import weight_matching
from rebasin.matching.scores import gram
from rebasin.progress import track
from rebasin.spec import PermutationSpec
from rebasin.weights import Weights, interpolate, over, take

BATCH = 1000  # inputs that go through at once
MOST_ROUNDS = 50  # of turning and permuting in turn
GAIN = 1e-5  # a round that gains less than this share of the inner product is the last
MOMENTUM, LEARNING_RATE = 0.9, 1e-2  # of straight-through matching, as of the one by permutations

Best = Callable[[Tensor], Tensor]  # of scores (*batch, n, n), the maps of its kind with the largest inner product


def stream_of(spec: PermutationSpec) -> str:
    """The group of a transformer's residual stream: that along which its learned positions lie."""
    return next(part.group for part in spec.parts["positions.weight"])


def held(spec: PermutationSpec, groups: Iterable[str]) -> PermutationSpec:
    """The spec in which the units of these groups stay where they are."""
    staying = set(groups)
    parts = {key: tuple(part for part in own if part.group not in staying) for key, own in spec.parts.items()}
    sizes = {group: size for group, size in spec.sizes.items() if group not in staying}
    inside = {inner: outer for inner, outer in spec.inside.items() if inner not in staying}
    return replace(spec, sizes=sizes, parts=parts, inside=inside)


def rotate(spec: PermutationSpec, group: str, maps: Tensor, weights: Weights) -> dict[str, Tensor]:
    """Weights (pairs, ...) with a group's units turned by ``maps`` (pairs, blocks, units, units), block by block."""
    turned = dict(weights)
    for key, parts in spec.parts.items():
        for part in parts:
            if part.group == group:
                along = turned[key].movedim(part.axis + 1, 1)  # (pairs, blocks * units, ...)
                blocks = along.reshape(*maps.shape[:-1], -1)
                turned[key] = (maps @ blocks).reshape(along.shape).movedim(1, part.axis + 1)
    return turned


def procrustes(scores: Tensor) -> Tensor:
    """The orthogonal maps (*batch, n, n) with the largest inner product with ``scores``."""
    left, _, right = torch.linalg.svd(scores)
    return left @ right


def reordering(scores: Tensor) -> Tensor:
    """The permutation matrices (*batch, n, n) with the largest inner product with ``scores``."""
    return one_hot(solve_assignment(scores), scores.shape[-1]).to(scores)


def closest(spec: PermutationSpec, group: str, a: Weights, b: Weights, best: Best) -> Tensor:
    """The maps (pairs, blocks, units, units) that bring a group of b (pairs, ...) closest to a's, all others held."""
    lies = [(key, part) for key, own in spec.parts.items() for part in own if part.group == group]
    scores = torch.stack([gram(a[key], b[key], part) for key, part in lies]).sum(0)
    blocks = spec.sizes[spec.inside[group]] if group in spec.inside else 1
    by_block = scores.unflatten(2, (blocks, -1)).unflatten(1, (blocks, -1))  # (pairs, blocks, units, blocks, units)
    return best(by_block.diagonal(dim1=1, dim2=3).movedim(-1, 1))


def match_by_weights(
    spec: PermutationSpec,
    mapped: Sequence[str],
    best: Best,
    a: Weights,
    b: Weights,
    seed: int,
    rounds: int = MOST_ROUNDS,
) -> dict[str, Tensor]:
    """b (pairs, ...) with the groups ``mapped`` by ``best``, and all but the stream permuted, until it comes no closer.

    The two are done in turn, and no step makes the inner product of the weights smaller.
    """
    permuted = held(spec, [stream_of(spec)])
    reached = inner_product(spec, a, b)
    for _ in range(rounds):
        b = weight_matching(permuted, a, b, seed=seed).apply(b)
        for group in mapped:
            b = rotate(spec, group, closest(spec, group, a, b, best), b)
        before, reached = reached, inner_product(spec, a, b)
        if (reached - before <= GAIN * before.abs()).all():
            break
    return dict(b)


def match_by_activations(
    spec: PermutationSpec, best: Best, model: nn.Module, a: Weights, b: Weights, inputs: Tensor
) -> dict[str, Tensor]:
    """b (pairs, ...) with its stream mapped to give what a's gives on the inputs, then units permuted likewise."""
    stream = stream_of(spec)
    single = over(a, Tensor.float)
    products = stream_products(model, single, over(b, Tensor.float), inputs)
    b = rotate(spec, stream, best(products.double()).unsqueeze(1), b)
    loader = list(inputs.split(BATCH))
    matching = activation_matching(held(spec, [stream]), single, over(b, Tensor.float), model=model, loader=loader)
    return matching.permutation.apply(b)


@torch.no_grad()
def stream_products(model: nn.Module, a: Weights, b: Weights, inputs: Tensor) -> Tensor:
    """Inner products, over inputs and places, of what the layers of a and of b read: (pairs, width, width)."""
    model = copy.deepcopy(model)
    read: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, RMSNorm):
            module.register_forward_hook(lambda _module, _inputs, value: read.append(value.flatten(0, -2)))

    def values(weights: Weights, batch: Tensor) -> Tensor:
        read.clear()
        functional_call(model, dict(weights), (batch,))
        return torch.cat(read)  # (norms * inputs * places, width)

    products = []
    for pair in range(len(next(iter(a.values())))):
        first, second = take(a, pair), take(b, pair)
        batches = [values(first, batch).T @ values(second, batch) for batch in inputs.split(BATCH)]
        products.append(torch.stack(batches).sum(0))
    return torch.stack(products)


def match_straight_through(
    spec: PermutationSpec,
    mapped: Sequence[str],
    best: Best,
    model: nn.Module,
    a: Weights,
    b: Weights,
    images: Split,
    epochs: int,
    batch_size: int,
    seed: int,
) -> dict[str, Tensor]:
    """b (pairs, ...) mapped and permuted such that the midpoint's loss on the images is low.

    Git Re-Basin's Algorithm 2, with rotations if those are ``best``: a free point starts at a. On every batch b is
    matched to it, by one round of ``match_by_weights`` from where the last one ended, the loss of the midpoint of a and
    b is taken, and its gradient moves the free point. The b of the batch with the lowest loss is kept.
    """

    def loss_of_one(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, weights, (x,)), y)

    gradient_and_loss = vmap(grad_and_value(loss_of_one), in_dims=(0, None, None))
    free, speed = over(dict(a), Tensor.clone), over(dict(a), torch.zeros_like)
    chosen, lowest = dict(b), torch.full((len(next(iter(a.values()))),), torch.inf)
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(images.labels), generator=generator) for _ in range(epochs)]
    batches = [batch for order in orders for batch in order.split(batch_size)]
    with track(len(batches), "match straight through", "batch") as bar:
        for batch in batches:
            b = match_by_weights(spec, mapped, best, free, b, seed, rounds=1)
            some = Split(images.images[batch], images.labels[batch])
            middle = over(interpolate(dict(a), b, 0.5), Tensor.float)
            gradient, loss = gradient_and_loss(middle, some.pixels, some.labels)
            for key in free:
                # The midpoint moves half as far as b, which stands for the free point.
                speed[key] = MOMENTUM * speed[key] + gradient[key].double() / 2
                free[key] = free[key] - LEARNING_RATE * speed[key]
            better = loss < lowest
            lowest = torch.where(better, loss, lowest)
            for key, tensor in b.items():
                chosen[key] = torch.where(better.reshape(-1, *[1] * (tensor.ndim - 1)), tensor, chosen[key])
            bar.update()
    return chosen


def largest_change(
    model: nn.Module, weights: Weights, other: nn.Module, other_weights: Weights, inputs: Tensor
) -> Tensor:
    """By how much of its largest output each network (pairs, ...) differs from another, in float64: (pairs,)."""
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    answers = []
    for network, own in ((model, weights), (other, other_weights)):
        network = copy.deepcopy(network).double()
        doubled = over(dict(own), Tensor.double)
        answers.append(vmap(lambda own, network=network: functional_call(network, own, (inputs,)))(doubled))
    difference, size = (value.abs().flatten(1).amax(1) for value in (answers[0] - answers[1], answers[0]))
    return difference / size
