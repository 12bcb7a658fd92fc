"""Gram matrices of what the layers of n models read on the same inputs: all that least squares needs of the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rebasin.arguments import check_count, check_number, check_seed
from rebasin.fitting.rows import alike_layers, draw_places, layer_inputs, layers_of, number_of_blocks, rows_at
from rebasin.graph import Programs
from rebasin.inputs import Inputs, batch_size, check_two_or_more, on_each
from rebasin.matching.batches import Loader, batches_of
from rebasin.merging.record import of_one_merge
from rebasin.spec import PermutationSpec
from rebasin.weights import Models, check_device, check_module, take

GIBIBYTE = 2**30
PIECE = 256  # columns that are multiplied at once; only pieces below the diagonal are, as products are symmetric


@dataclass(frozen=True, eq=False, repr=False)
class LayerGram:
    """What one layer of n models reads on the same inputs, at the same places of them, as sums of products.

    - ``weight``, ``bias``: the keys of its entries; there may be no bias.
    - ``blocks``: the number of channel groups of a convolution; 1 of all else.
    - ``alike``: whether all models read the same, as in a first layer.
    - ``gram`` (2, n * columns + 1, n * columns + 1), float64: the Gram matrix of [x_1, ..., x_n, 1], where x_m are the
      columns that model m reads, for each half of the images: those to fit, and those held back. Of models that read
      alike it is (2, columns + 1, columns + 1), of [x, 1]. Columns are those of the weight, flattened, of a grouped
      convolution made whole.
    - ``rows`` (2,): how many rows were added up.
    """

    weight: str
    bias: str | None
    blocks: int
    alike: bool
    gram: Tensor
    rows: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Grams:
    """The Gram matrices of all layers of n models, from ``collect``.

    - ``spec``, ``model``: of the models, and one of them.
    - ``weights`` (n, ...): the models.
    - ``program``: the exported graph of one.
    - ``layers``: a ``LayerGram`` for the weight of each linear layer and convolution.
    - ``images``: how many inputs were read.
    - ``loader``: where they came from; ``example``: two of them.
    """

    spec: PermutationSpec
    model: nn.Module
    weights: dict[str, Tensor]
    program: torch.export.ExportedProgram
    layers: Mapping[str, LayerGram]
    images: int
    loader: Loader
    example: Inputs

    @property
    def n(self) -> int:
        """The number of models."""
        return len(next(iter(self.weights.values())))

    def __repr__(self) -> str:
        size = sum(layer.gram.nbytes for layer in self.layers.values()) / GIBIBYTE
        return f"Grams({self.n} models, {len(self.layers)} layers, {self.images} images, {size:.3g} GiB)"


def check_grams(grams: Any, call: str) -> None:
    """Raise TypeError, with the right order of the arguments in ``call``, unless the first one is Gram matrices."""
    if not isinstance(grams, Grams):
        raise TypeError(f"the first argument is what collect gives, and a {type(grams).__name__} was given: {call}")


@torch.no_grad()
def collect(
    spec: PermutationSpec,
    models: Models,
    loader: Loader,
    *,
    model: nn.Module | None = None,
    places: int | None = 16,
    memory: float = 4.0,
    seed: int = 0,
) -> Grams:
    """The Gram matrices of what each linear layer and convolution of n models reads, in one pass over inputs.

    ``models`` is a list of modules, which are taken as in evaluation, or their weights (n, ...), in which case
    ``model`` is a module that they are weights of. ``loader`` gives batches of inputs, or tuples that begin with them;
    one tensor is one batch, and so is a dict of several inputs. All models see the same inputs, and no
    labels are needed. ``pleas`` reads the loader once more where models have batch norms, so that it must not be a
    generator then. Every second image is held back. Of the places that a layer gives for an image, at most
    ``places`` are taken, drawn by ``seed`` anew for each image; None takes all. The outputs of a layer are linear in
    what it reads, so that these matrices serve every permutation, size and objective; nothing has to be read again.
    Products are made in the models' precision, and added in float64.

    Raises ValueError if the models do not fit, if the loader gives no tensors or fewer than two images, or, before any
    layer is run, if the matrices would take more than ``memory`` gibibytes; and if what a layer reads is not finite.

    >>> models = [nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(2)]
    >>> spec = rebasin.trace(models[0], torch.ones(1, 3))
    >>> collect(spec, models, torch.randn(100, 3))
    Grams(2 models, 2 layers, 100 images, ... GiB)
    """
    weights = of_one_merge(spec, models, "collect(spec, models, loader)")
    spec.check_finite(weights, "the models")
    if places is not None:
        check_count(places, "places")
    check_number(memory, "memory", above=0)
    check_seed(seed)
    model = template(models) if model is None else model
    check_module(model, "collect(spec, models, loader, model=model)", "model")
    check_device(model, weights)
    n = len(next(iter(weights.values())))
    alone = [take(weights, m) for m in range(n)]
    generator = torch.Generator().manual_seed(seed)
    programs = Programs(model)
    layers: dict[str, LayerGram] = {}
    images = 0
    example: Inputs = torch.empty(0)
    for inputs, *_ in batches_of(loader, weights, "Gram matrices"):
        program = programs.of(inputs)
        if not layers:
            example = on_each(lambda x: x[:2], inputs)
            layers = _empty(program, weights, memory)
        held = (torch.arange(batch_size(inputs)) + images) % 2 == 1
        each = [layer_inputs(program, one, inputs) for one in alone]
        for of_models in zip(*each, strict=True):
            node, x = of_models[0]
            layer = layers[layers_of(program)[node][0]]
            at = draw_places(node, x, places, generator)
            reading = of_models[:1] if layer.alike else of_models
            _add(layer, [rows_at(node, read, at) for _, read in reading], held)
        images += batch_size(inputs)
    check_two_or_more(images, "a fit, which holds back every second input,")
    for key, layer in layers.items():
        for gram in layer.gram:
            gram.copy_(gram.tril() + gram.tril(-1).T)
        if not layer.gram.diagonal(dim1=1, dim2=2).isfinite().all():
            raise ValueError(f"what {key!r} reads is not finite for some of the models and inputs")
    return Grams(spec, model, weights, next(iter(programs.by_shapes.values())), layers, images, loader, example)


def _add(layer: LayerGram, read: list[Tensor], held: Tensor) -> None:
    """Add what n models read, (images, places, columns) each, to a layer's Gram matrices, below the diagonal."""
    rows = torch.cat([*read, torch.ones_like(read[0][..., :1])], -1)
    for half, own in enumerate(halves(rows, held)):
        pieces = own.split(PIECE, 1)
        for i, left in enumerate(pieces):
            for j, right in enumerate(pieces[: i + 1]):
                at = slice(i * PIECE, (i + 1) * PIECE), slice(j * PIECE, (j + 1) * PIECE)
                layer.gram[(half, *at)] += left.T @ right
        layer.rows[half] += len(own)


def halves(rows: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
    """Of rows (images, places, columns), those of the images that are fitted, and of those held back: (rows, columns).

    ``held`` (images,) says which. Where the first axis is another, as in attention that has it second, every second
    slice of that is held back.
    """
    if len(rows) != len(held):
        held = torch.arange(len(rows)) % 2 == 1
    held = held.to(rows.device)
    return rows[~held].flatten(0, 1), rows[held].flatten(0, 1)


def _empty(program: torch.export.ExportedProgram, weights: Mapping[str, Tensor], memory: float) -> dict[str, LayerGram]:
    """Gram matrices to be added to. Raises ValueError if they take too much memory, or layers are complex."""
    biases, blocks = {}, {}
    for node, (weight, bias) in layers_of(program).items():
        biases[weight], blocks[weight] = bias, number_of_blocks(node)
    n = len(next(iter(weights.values())))
    for key in biases:
        if weights[key].is_complex():
            raise ValueError(f"{key!r} is complex, and no layer of complex weights is fitted: take match and merge")
    alike = alike_layers(program, weights)
    readers = {key: 1 if key in alike else n for key in biases}
    sizes = {key: readers[key] * weights[key][0, 0].numel() * blocks[key] + 1 for key in biases}
    needed = sum(2 * 8 * size**2 for size in sizes.values()) / GIBIBYTE
    if needed > memory:
        largest = max(sizes, key=sizes.__getitem__)
        raise ValueError(
            f"the Gram matrices of {n} models take {needed:.3g} GiB, more than memory={memory:g} allows; "
            f"the largest, of {largest!r}, has {sizes[largest]} columns"
        )
    layers = {}
    for key, size in sizes.items():
        gram = torch.zeros(2, size, size, dtype=torch.float64, device=weights[key].device)
        layers[key] = LayerGram(key, biases[key], blocks[key], key in alike, gram, torch.zeros(2, dtype=torch.int64))
    return layers


def template(models: Models) -> nn.Module:
    """The first of the models, as a module. Raises ValueError if they are none."""
    first = models[0] if isinstance(models, list | tuple) else models
    if not isinstance(first, nn.Module):
        raise ValueError("the models are weights: pass model=, a module that they are weights of")
    return first
