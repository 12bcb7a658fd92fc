"""Least squares on what the layers of a merge itself read, one layer after another."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rebasin.arguments import check_count, check_seed
from rebasin.expanding.expanded import expand_network
from rebasin.expanding.layout import blocks_of, places_as_given, whole
from rebasin.expanding.slots import Slots
from rebasin.fitting.grams import Grams, halves, template
from rebasin.fitting.least_squares import Fit, solve
from rebasin.fitting.norm_statistics import batch_statistics
from rebasin.fitting.normal_equations import Equations, Layout
from rebasin.fitting.rows import draw_places, layer_inputs, layers_of, number_of_blocks, rows_at
from rebasin.graph import export, run
from rebasin.inputs import Inputs, batch_size, check_batch, check_inputs, check_two_or_more, on_each
from rebasin.merging.mending import norms_of
from rebasin.merging.pleas import Fitted
from rebasin.merging.record import of_one_merge
from rebasin.weights import Models, check_device, check_module, take, weights_of

# What a layer leaves of its targets, as a share of their squares, if rounding of single precision is all.
ROUNDING_OF_SINGLES = 1e-10


@torch.no_grad()
def refit(
    merge: Fitted | Slots,
    models: Grams | Models,
    inputs: Inputs,
    *,
    model: nn.Module | None = None,
    places: int | None = 16,
    seed: int = 0,
) -> Fitted:
    """Fit the layers of a merge once more, in order, each to what the merge itself reads by then.

    ``merge`` is what ``pleas`` or ``fit_slots`` made, or an average's slots, ``Slots.of_permutation(permutation)``.
    ``models`` are what went into it: Gram matrices, or the models themselves, a list or their weights (n, ...) with one
    of them as ``model``. An average needs no Gram matrices, which grow with the square of n. ``inputs`` (m, ...) go
    into it, all at once: a tensor, a tuple or a dict of them. In ``fit_slots`` a layer reads what the models' layers
    read; here it reads what the layers before it give, so that it makes up for their errors. Its targets are the same:
    the mean of what the models' layers give for the units of a slot. The ridge pulls towards the weights that the merge
    has. Running statistics are those of ``inputs``. ``places`` and ``seed`` are those of ``collect``; every second
    image is held back. Sources: RegMean++ (Nguyen et al. 2025) and the least squares of neuron interpolation (2025),
    which differ in their targets. The ``fits`` are by parameter.

    Raises ValueError for another number of models than the merge's, for fewer than two inputs, and for a weight or bias
    that is used twice.

    >>> models = [nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(2)]
    >>> x = torch.randn(200, 3)
    >>> spec = rebasin.trace(models[0], x)
    >>> grams = rebasin.collect(spec, models, x)
    >>> refit(rebasin.pleas(grams), grams, x)
    Fitted(2 models, 1 group, 8 + 8 -> 8 units; size 1.00; ...)
    >>> average = rebasin.merge(spec, models)
    >>> refit(rebasin.Slots.of_permutation(average.permutation), models, x)
    Fitted(2 models, 1 group, 8 + 8 -> 8 units; size 1.00; ...)
    """
    if not isinstance(merge, Fitted | Slots):
        raise TypeError(
            "the first argument is what pleas gives, or the slots of an average, and a "
            f"{type(merge).__name__} was given: refit(merge, models, inputs)"
        )
    if places is not None:
        check_count(places, "places")
    check_seed(seed)
    check_batch(inputs, "the inputs")
    check_two_or_more(batch_size(inputs), "a fit, which holds back every second input,")
    slots = merge if isinstance(merge, Slots) else merge.slots
    parents, model = _parents(models, model, slots)
    check_inputs(inputs, "the inputs", next(iter(parents.values())).device)
    if isinstance(merge, Slots):
        example = on_each(lambda x: x[:2], inputs)
        merge = Fitted(expand_network(merge, model, parents, example=example), merge, {})
    network = copy.deepcopy(merge.model)
    program = export(network, inputs)
    layers, norms, weights = layers_of(program), norms_of(program), weights_of(network)
    used = [name for names in layers.values() for name in names if name is not None]
    for name, times in Counter(used).items():
        if times > 1:
            raise ValueError(
                f"{name.removeprefix('network.')!r} is used {times} times, and what is best for one use is not for the "
                "other: it cannot be refitted"
            )
    targets = _Targets(parents, model, merge, inputs, places, seed)
    held = torch.arange(batch_size(inputs)) % 2 == 1
    fits: dict[str, Fit] = {}

    def visit(node: torch.fx.Node, args: list[Any], compute: Callable[..., Any]) -> Any:
        if node in norms:
            args[3:5] = batch_statistics(args[0])
            weights.update(zip(norms[node], args[3:5], strict=True))
        elif node in layers:
            weight, bias = layers[node]
            name = weight.removeprefix("network.")
            block = network.blocks[name]
            at, given = targets.of(block.key)
            rows = torch.arange(given.shape[-1]) if block.rows is None else torch.from_numpy(block.rows)
            read = rows_at(node, args[0], at)
            own_bias = None if bias is None else weights[bias]
            fitted = _fit(name, read, given[..., rows], held, weights[weight], own_bias, number_of_blocks(node))
            args[1], own_bias, fits[name] = fitted
            weights[weight] = args[1]
            if bias is not None and own_bias is not None:
                weights[bias] = args[2] = own_bias
        return compute(*args)

    run(program, weights, inputs, visit)
    network.load_state_dict(weights)
    return replace(merge, model=network, fits=fits)


def _parents(models: Grams | Models, model: nn.Module | None, slots: Slots) -> tuple[dict[str, Tensor], nn.Module]:
    """The weights (n, ...) of the models of a merge with these slots, and one of them."""
    if isinstance(models, Grams):
        if model is not None:
            raise ValueError("Gram matrices come with their model: model= is for weights (n, ...)")
        parents, model = models.weights, models.model
    else:
        call = "refit(merge, models, inputs, model=model)"
        parents = of_one_merge(slots.spec, models, call)
        model = template(models) if model is None else model
        check_module(model, call, "model")
        check_device(model, parents)
    n = len(next(iter(parents.values())))
    if n != slots.n:
        raise ValueError(f"the merge is of {slots.n} models, and {n} were given")
    return parents, model


class _Targets:
    """What the layers of a merge should give: the mean of what the models' layers give for the units of a slot."""

    def __init__(
        self, parents: dict[str, Tensor], model: nn.Module, merge: Fitted, inputs: Inputs, places: int | None, seed: int
    ) -> None:
        self.parents, self.merge, self.places = parents, merge, places
        self.generator = torch.Generator().manual_seed(seed)
        self.program = export(model, inputs)
        alone = [take(parents, m) for m in range(merge.slots.n)]
        # The models are computed only as far as the merge has come.
        self.coming: Iterator[Any] = zip(*(layer_inputs(self.program, one, inputs) for one in alone), strict=True)
        self.known: dict[str, tuple[Tensor, Tensor]] = {}

    def of(self, key: str) -> tuple[Tensor, Tensor]:
        """Places (images, places) that were drawn, and the targets there (images, places, outputs)."""
        while key not in self.known:
            of_models = next(self.coming)
            node, x = of_models[0]
            weight, bias = layers_of(self.program)[node]
            at = draw_places(node, x, self.places, self.generator)
            slots, height = self.merge.slots, self.merge.model.shapes[weight][0]
            index, shared = places_as_given(slots, weight, 0)
            if height != shared:
                index, _ = places_as_given(slots, weight, 0, stacked=True)
            total = torch.zeros(())
            for m, (_, read) in enumerate(of_models):
                matrix = whole(self.parents[weight][m], number_of_blocks(node)).flatten(1)
                rows = rows_at(node, read, at)
                given = rows @ matrix.T.to(rows)
                given = given if bias is None else given + self.parents[bias][m]
                total = total + given.new_zeros(*at.shape, height).index_add_(2, index[m].to(given.device), given)
            self.known[weight] = at, total / torch.bincount(index.flatten(), minlength=height).to(total)
        return self.known[key]


def _fit(
    name: str, read: Tensor, given: Tensor, held: Tensor, weight: Tensor, bias: Tensor | None, blocks: int
) -> tuple[Tensor, Tensor | None, Fit]:
    """The weight and bias of a layer that reads and should give these (images, places, ...), and how it was fitted.

    Raises ValueError, naming the layer, for values whose squares are not finite.
    """
    around = whole(weight, blocks)
    start = around.flatten(1).double()
    if bias is not None:
        start = torch.cat([start, bias.double().unsqueeze(-1)], 1)
        read = torch.cat([read, torch.ones_like(read[..., :1])], -1)
    outputs, columns = start.shape
    left, energy = (given - read @ start.T.to(read)).square().sum(), given.square().sum()
    if not bool((left + energy).isfinite()):
        raise ValueError(f"what {name!r} reads or should give is infinite or NaN, or too large to be squared")
    if left <= ROUNDING_OF_SINGLES * energy:
        # As a first layer does, which reads the same as the models': its targets are linear in that.
        return weight, bias, Fit(float("inf"), 0.0, 0.0, read[..., 0].numel() // 2, columns)
    sums = []
    for x, y in zip(halves(read, held), halves(given, held), strict=True):
        sums.append([(x.T @ x).double(), (y.T @ x).double(), y.square().sum(0).double(), torch.tensor(len(x))])
    equations = Equations((0,), *(torch.stack(of_halves) for of_halves in zip(*sums, strict=True)))
    # Each block of outputs reads its own block of columns, and the constant.
    per_block = around[0].numel() // blocks
    allowed = []
    for block in range(blocks):
        own = torch.arange(block * per_block, (block + 1) * per_block)
        constant = torch.arange(around[0].numel(), columns)
        allowed.append((torch.arange(outputs).reshape(blocks, -1)[block], torch.cat([own, constant])))
    nothing = torch.zeros(1, 0, dtype=torch.int64)
    layout = Layout(nothing, nothing, torch.ones(1, columns), allowed, [(0,)] * blocks)
    fitted, fit = solve(layout, [equations], start)
    new_bias = None if bias is None else fitted[:, -1].to(bias)
    matrix = fitted if bias is None else fitted[:, :-1]
    return blocks_of(matrix.reshape(around.shape), blocks).to(weight), new_bias, fit
