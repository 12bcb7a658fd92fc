"""The proof of a spec: a network with redrawn weights computes the same whichever way its groups are permuted."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx.node import map_aggregate

from rebasin.graph import first_line, given, operator, ordered, place_of, weight_keys
from rebasin.inputs import Inputs
from rebasin.permutation import flatten, permute
from rebasin.spec import PermutationSpec, SpecError
from rebasin.tracing.memory import Memory, memory_of
from rebasin.weights import is_whole

# Sums of float64 in another order differ by far less, a unit in a wrong place by far more.
ROUNDING = 1e-8
# How far an entry may move whatever happens, of its own size, and from which size on its variation says nothing.
OWN_ROUNDING, OWN_VARIATION = 1e-13, 1e6
# Where a network amplifies rounding, as sines of sines do, an output moves by some times as much as it does when all
# weights move by their last digits, in one of a few ways, and that is but a small share of what other weights do.
LAST_DIGITS, WAYS, TIMES, SMALL_SHARE = 1e-15, 5, 30.0, 1e-3
# The share of entries whose own scale may be too small by chance, and that of a sample which tells that values differ.
FEW, MANY = 1e-3, 0.25
# The number formats that a proof computes in, in place of those of the model.
WIDE = dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), torch.float64)
WIDE |= dict.fromkeys((torch.complex32, torch.complex64), torch.complex128)


def prove(spec: PermutationSpec, program: torch.export.ExportedProgram, inputs: Inputs) -> None:
    """Raise SpecError, naming the group, unless permuting the groups leaves the network's outputs as they are.

    The network is computed in float64 from end to end, whatever number formats it asks for on the way. All weights,
    buffers and inputs are redrawn twice, whole numbers aside. In the first network each group is permuted at random by
    itself, in all blocks where it lies within blocks, and in both at last all of them. Each entry of an output is held
    against its own change from one redrawn network to the other, so that large ones hide none, and where the network
    amplifies rounding, against its change from weights that differ in their last digits. At last all groups are
    permuted for masks and whole numbers that are redrawn too, within the example's range, unless the network does not
    take them. Raises ValueError if outputs are not finite or nothing but rounding, since nothing can be compared then,
    and if an operator cannot be computed, naming it.
    """
    generator = torch.Generator().manual_seed(0)
    index = {name: derangements(spec, name, generator) for name in spec.sizes}
    with torch.no_grad(), computing_in(torch.float64):
        _prove_example(spec, index, _two_networks(program, inputs, generator))
        values = _other_values(program, inputs, generator)
        if values is None:
            return
        try:
            replays = _two_networks(program, values, generator)
        except ValueError:  # numbers of rows that a table does not have, say, or a mask that leaves nothing
            return
        for replay, other in (replays, replays[::-1]):
            if not replay.unchanged(permuted(spec, replay.weights, index), other):
                raise SpecError(
                    "permuting all groups together changes what the network computes for masks or whole numbers other "
                    "than the example's: its spec is wrong"
                )


def _prove_example(spec: PermutationSpec, index: Mapping[str, Tensor], replays: list[_Replay]) -> None:
    """Raise SpecError, naming the group, unless outputs stay: each group by itself in one network, all in both."""
    together = {name: [name] for name in spec.sizes}
    together["all groups together"] = list(spec.sizes)
    for name, moving in together.items():
        chosen = {group: index[group] for group in moving}
        pairs = (replays,) if name in spec.sizes else (replays, replays[::-1])
        for replay, other in pairs:
            if not replay.unchanged(permuted(spec, replay.weights, chosen), other):
                raise SpecError(f"permuting {name!r} changes what the network computes: its spec is wrong")


def _two_networks(program: torch.export.ExportedProgram, inputs: Inputs, generator: torch.Generator) -> list[_Replay]:
    """A graph's values in two networks with nothing in common. Raises ValueError if there is nothing to compare."""
    replays = []
    for _ in range(2):
        weights = redrawn(program, generator)
        replays.append(_Replay(program, weights, inputs_like(program, inputs, generator)))
        if not replays[-1].finite():
            raise ValueError("nothing can be proved: for random weights and inputs, the outputs are not finite")
    return replays


@contextmanager
def computing_in(number_format: torch.dtype) -> Iterator[None]:
    """What is made of no tensor, or of whole numbers, is made in this format."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(number_format)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def redrawn(program: torch.export.ExportedProgram, generator: torch.Generator) -> dict[str, Tensor]:
    """Random float64 values for all parameters, buffers and constants of a graph; whole numbers stay."""
    return drawn_like({**program.state_dict, **program.constants}, generator)


def drawn_like(tensors: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Random float64 values for these tensors; whole numbers stay."""
    drawn: dict[Memory, Tensor] = {}  # a tensor of two names is drawn once
    for tensor in tensors.values():
        if memory_of(tensor) not in drawn:
            drawn[memory_of(tensor)] = _redrawn(tensor, generator)
    return {key: drawn[memory_of(tensor)] for key, tensor in tensors.items()}


def permuted(spec: PermutationSpec, weights: Mapping[str, Tensor], index: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those weights that the groups in ``index`` move, moved, all others held."""
    held = {g: torch.arange(n).expand(spec.index_shape(g)) for g, n in spec.sizes.items() if g not in index}
    flat = flatten(spec, {**held, **index})
    moving = {*index, *(inner for group in index for inner in spec.within(group))}
    moved = {}
    for key, parts in spec.parts.items():
        own = [part for part in parts if part.group in moving]
        if own:
            moved[key] = spec.unview(key, permute(spec.view(key, weights[key]), own, flat, weights[key].ndim))
    return moved


class _Replay:
    """A graph's values for one input and one set of weights, and what becomes of them when some weights change."""

    def __init__(self, program: torch.export.ExportedProgram, weights: Mapping[str, Tensor], inputs: Inputs):
        calls = (node for node in program.graph.nodes if node.op == "call_function")
        self.nodes = [node for node in calls if node.meta.get("val") is not None]  # assertions give nothing
        (output,) = (node for node in program.graph.nodes if node.op == "output")
        self.outputs = list(output.all_input_nodes)
        self.sources = {key: node for node, key in weight_keys(program).items()}
        self.program, self.weights, self.inputs = program, weights, inputs
        self.values = {node: x.to(WIDE.get(x.dtype, x.dtype)) for node, x in given(program, weights, inputs).items()}
        for node in self.nodes:
            self.values[node] = self._call(node, self.values.__getitem__)

    def finite(self) -> bool:
        """Whether each output has entries to compare: it may be masked by infinite ones."""
        values = [value for value in map(self.values.__getitem__, self.outputs) if isinstance(value, Tensor)]
        return all(not value.isnan().any() and bool(value.isfinite().any()) for value in values if value.numel())

    def unchanged(self, weights: Mapping[str, Tensor], other: _Replay) -> bool:
        """Whether the outputs stay with these weights in place of their own. ``other`` has other weights and inputs.

        Only what depends on them is computed again, up to where it is what it was; where the network amplifies rounding
        this is further on, and outputs may move as much as that.
        """
        new: dict[torch.fx.Node, Any] = {self.sources[key]: tensor for key, tensor in weights.items()}
        for node in self.nodes:
            if any(argument in new for argument in node.all_input_nodes):
                value = self._call(node, lambda argument: new.get(argument, self.values[argument]))
                if not stays(value, self.values[node], other.values[node]):
                    new[node] = value
        moved = [node for node in self.outputs if node in new]
        if not moved:
            return True
        told = []
        for node in moved:
            nearby = [replay.values[node] for replay in self.nearby]
            told.append(rounding_alone(new[node], self.values[node], other.values[node], nearby))
        if None in told and False not in told:
            raise ValueError(
                "nothing can be proved: for random weights an output is nothing but rounding, as the mean of what was "
                "centred is, or the network makes rounding too large. Write the spec by hand with "
                "PermutationSpec.from_axes"
            )
        return all(told)

    @functools.cached_property
    def nearby(self) -> list[_Replay]:
        """The same network with other last digits."""
        return [_Replay(self.program, weights, self.inputs) for weights in nearly(self.weights)]

    @staticmethod
    def _call(node: torch.fx.Node, value_of: Callable[[torch.fx.Node], Any]) -> Any:
        args, kwargs = widened(torch.fx.map_arg((node.args, node.kwargs), value_of))
        try:
            return cast(Callable[..., Any], node.target)(*args, **kwargs)
        except Exception as error:
            raise ValueError(
                f"nothing can be proved: the operator {operator(node)} cannot be computed in float64{place_of(node)}: "
                f"{first_line(error)}. Replace it by others, or write the spec by hand with PermutationSpec.from_axes"
            ) from error


def widened(arguments: Any) -> Any:
    """The arguments of operators, with wide number formats in place of others."""
    return map_aggregate(
        arguments, lambda argument: WIDE.get(argument, argument) if isinstance(argument, torch.dtype) else argument
    )


def stays(new: Any, old: Any, other: Any) -> bool:
    """Whether a value is the old one but for rounding. ``other`` is what it is in a network that has nothing in common.

    How far an entry is from that in the other network tells the size of what the weights do to it, which its own size
    does not: a mask of -1e9 or a time stamp may be added to it. Of many entries, a few are by chance nearly what they
    are in the other network, so that this size is too small: those few are held against that of most.
    """
    if isinstance(old, list | tuple):
        return all(stays(*values) for values in zip(new, old, other, strict=True))
    if not isinstance(old, Tensor):
        return bool(new == old)
    if new.shape != old.shape or not (old.is_floating_point() or old.is_complex()):
        return torch.equal(new, old)
    # Of tensors that differ, some entries tell nearly always; of equal ones, all are compared.
    some = slice(None, None, 1 + old.numel() // 64)
    sample = [tensor.flatten()[some] for tensor in (new, old, other)]
    if _moved(sample[0], sample[1], _scale(*sample[1:])).double().mean() > MANY:
        return False
    scale = _scale(old, other)
    moved = _moved(new, old, scale)
    count = int(moved.sum())
    return count == 0 or (count <= FEW * old.numel() and not (moved & _moved(new, old, scale.median())).any())


def nearly(weights: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """These weights, each number with other last digits, in several ways."""
    for seed in range(WAYS):
        generator = torch.Generator().manual_seed(seed)
        near = {}
        for key, tensor in weights.items():
            near[key] = tensor
            if not is_whole(tensor):
                noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                near[key] = tensor * (1 + LAST_DIGITS * noise)
        yield near


def rounding_alone(new: Any, old: Any, other: Any, nearby: Sequence[Any]) -> bool | None:
    """Whether a value that does not stay has moved by no more than rounding, in a network that amplifies it.

    ``other`` is as for ``stays``, ``nearby`` what the value is with ``nearly`` the same weights. Each entry is held
    against its own noise; a few may have little of it by chance, and are held against what is usual at their scale.
    None if nobody can tell, as rounding is not small beside what other weights do.
    """
    if not isinstance(old, Tensor) or not old.is_floating_point() or new.shape != old.shape:
        return False
    scale, change = _scale(old, other), (new - old).abs()
    noise = torch.stack([(near - old).abs() for near in nearby]).amax(0)
    moved = _moved(new, old, scale)
    unexplained = moved & ~(change <= TIMES * noise)
    usual = (noise / scale)[moved].median()
    if unexplained.sum() > FEW * old.numel() or (unexplained & ~(change <= TIMES * usual * scale)).any():
        return False
    return None if (moved & (noise > SMALL_SHARE * scale)).sum() > FEW * old.numel() else True


def _scale(old: Tensor, other: Tensor) -> Tensor:
    """The size of what the weights do to each entry."""
    return torch.fmin((old - other).abs(), OWN_VARIATION * old.abs()).nan_to_num(nan=0, posinf=0)


def _moved(new: Tensor, old: Tensor, scale: Tensor) -> Tensor:
    """Which entries are others than before, by more than rounding at this scale; what is infinite stays so."""
    alike = (new == old) | (new.isnan() & old.isnan())
    bound = ROUNDING * scale + (OWN_ROUNDING * old.abs()).nan_to_num(nan=0, posinf=0)
    return ~(alike | ((new - old).abs() <= bound))


def same(a: Any, b: Any) -> bool:
    """Whether two values are the same but for rounding."""
    if isinstance(a, list | tuple):
        return all(same(x, y) for x, y in zip(a, b, strict=True))
    if not isinstance(a, Tensor):
        return a == b
    if not a.is_floating_point() or not a.numel():
        return torch.equal(a, b)
    least, most = b.aminmax()
    bound = ROUNDING * max(-float(least), float(most))
    # Of tensors that differ, a few entries tell nearly always; of equal ones, all are compared.
    few = slice(None, None, 1 + a.numel() // 64)
    return math.isfinite(bound) and all(
        float((x - y).abs().max()) <= bound for x, y in ((a.flatten()[few], b.flatten()[few]), (a, b))
    )


def derangements(spec: PermutationSpec, group: str, generator: torch.Generator) -> Tensor:
    """Random permutations that leave no unit in its place, one for each block: cycles through all."""
    cycle = torch.rand(spec.index_shape(group), generator=generator).argsort(-1)
    return torch.empty_like(cycle).scatter_(-1, cycle, cycle.roll(1, -1))


def _redrawn(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Random float64 values of the size that keeps a network's signal alive; vectors positive, as variances are."""
    if tensor.is_complex():
        return torch.view_as_complex(_redrawn(torch.view_as_real(tensor), generator))
    if not tensor.is_floating_point():
        return tensor
    drawn = torch.empty(tensor.shape, dtype=torch.float64)  # filled in place: temporaries of large layers are slow
    if tensor.ndim < 2 or not tensor.numel():
        return drawn.uniform_(0.5, 1.5, generator=generator)
    bound = (6 / tensor[0].numel()) ** 0.5
    return drawn.uniform_(-bound, bound, generator=generator)


def inputs_like(
    program: torch.export.ExportedProgram, inputs: Inputs, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Random inputs: numbers in float64, and tokens within their vocabulary; other whole numbers as they are."""
    drawn = []
    for rows, x in zip(_vocabularies(program), ordered(program, inputs), strict=True):
        if rows is not None:
            drawn.append(torch.randint(rows, x.shape, generator=generator, dtype=x.dtype))
        elif is_whole(x):
            drawn.append(x)
        else:
            drawn.append(torch.randn(x.shape, generator=generator, dtype=WIDE.get(x.dtype, x.dtype)))
    return tuple(drawn)


def _vocabularies(program: torch.export.ExportedProgram) -> list[int | None]:
    """How many rows the table has that each input chooses from, as tokens do; None for other inputs."""
    user_inputs = set(program.graph_signature.user_inputs)
    rows: list[int | None] = []
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in user_inputs:
            tables = [user.args[0] for user in node.users if operator(user) == "embedding" and user.args[1] is node]
            rows.append(min((cast(torch.fx.Node, table).meta["val"].shape[0] for table in tables), default=None))
    return rows


def _other_values(
    program: torch.export.ExportedProgram, inputs: Inputs, generator: torch.Generator
) -> tuple[Tensor, ...] | None:
    """The inputs with other masks and whole numbers, within the range that they have; None if there are no others."""
    drawn, changed = [], False
    for rows, x in zip(_vocabularies(program), ordered(program, inputs), strict=True):
        free = rows is None and is_whole(x) and x.numel() > 0
        drawn.append(_within_range(x, generator) if free else x)
        changed |= free and not torch.equal(drawn[-1], x)
    return tuple(drawn) if changed else None


def _within_range(x: Tensor, generator: torch.Generator) -> Tensor:
    """Random values between the least and the largest of whole numbers; any, of truth values."""
    least, most = (0, 1) if x.dtype == torch.bool else (int(x.min()), int(x.max()))
    return torch.randint(least, most + 1, x.shape, generator=generator).to(x.dtype)
