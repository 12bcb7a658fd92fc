"""A torch model as a graph of functions: exported once, computed node by node with any weights."""

from __future__ import annotations

import functools
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from rebasin.inputs import Inputs, arguments_of, on_each, shapes_of, tensors_of
from rebasin.weights import copied, in_evaluation

# Operators that give each unit a sum or a scale of its own and then shift it: the axis of the units in what comes out,
# and which arguments are the weight and the bias.
AFFINE = {
    "linear": (-1, 1, 2),
    "conv1d": (1, 1, 2),
    "conv2d": (1, 1, 2),
    "conv3d": (1, 1, 2),
    "layer_norm": (-1, 2, 3),
    "group_norm": (1, 2, 3),
    "batch_norm": (1, 1, 2),
    "instance_norm": (1, 1, 2),
    "_native_batch_norm_legit_no_training": (1, 1, 2),
}
NORMS = tuple(name for name in AFFINE if "norm" in name)
# The same with the products of a matrix that models have in place of a linear layer, as GPT-2 does; some have no bias.
LAYERS = AFFINE | {"addmm": (-1, 2, 0), "mm": (-1, 1, 2), "matmul": (-1, 1, 2)}
MOVING = ("movedim", "permute", "transpose", "t")  # axes change places, and values stay
# The operators that write into their first argument what the function without the underscore gives.
IN_PLACE = {
    "add_", "sub_", "mul_", "div_", "clamp_", "relu_", "leaky_relu_", "elu_", "celu_", "silu_", "mish_", "tanh_",
    "sigmoid_", "hardtanh_", "hardswish_", "hardsigmoid_", "dropout_",
}  # fmt: skip
# Operators that torch writes with a check that has side effects, so that they stay as they are.
CHECKED = ("linalg_cholesky", "linalg_solve")
# What can be done where a weight norm or a spectral norm computes a weight.
MAKE_PLAIN = (
    "if a weight norm or a spectral norm computes it, make it a plain weight: torch.nn.utils."
    'parametrize.remove_parametrizations(module, "weight"), or else remove_weight_norm or remove_spectral_norm'
)
Number = int | float | torch.SymInt | torch.SymFloat | torch.SymBool  # what a node gives that is no tensor
COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
# Where these are told to train, which means side effects or chance.
TRAINING = {"batch_norm": 5, "instance_norm": 5, "dropout": 2}


class FixedBatchSize(ValueError):
    """A merged network was run on a batch of another size than the one that torch.export fixed."""


def export(
    model: nn.Module,
    inputs: Inputs,
    known: Container[str] | None = None,
    any_batch: bool = False,
) -> torch.export.ExportedProgram:
    """The model's graph in evaluation and without a cache, every operator a function without side effects.

    It is decomposed into simpler operators only if it needs that, or has one that is not in ``known``. Raises
    ValueError if torch.export refuses the model or the inputs, with the first line of what it says, and for operators
    that run a graph within the graph, as ``torch.cond`` does.

    With ``any_batch`` the graph takes batches of any size, where torch.export allows it: not where the model asks for
    ``len(x)``. Of ``inputs``, there are ``two_or_more``.
    """
    args, kwargs = arguments_of(inputs)
    dynamic = torch.export.ShapesCollection()
    if any_batch:
        for x in (*args, *kwargs.values()):
            dynamic[x] = {0: torch.export.Dim.AUTO} if x.ndim else {}
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one fused operator for a whole transformer layer
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own internals
            alone = without_cache(in_evaluation(copied(model, _own(model))))
            program = torch.export.export(alone, args, kwargs, dynamic_shapes=dynamic)
            # Decomposing takes longer than exporting.
            is_functional = _make_functional(program.graph, known)
            written_out: dict[Any, Any] = {}
            while (new := _written_out(program.graph, known, written_out)) or not is_functional:
                program = program.run_decompositions(new)
                written_out |= new
                is_functional = True
    except FixedBatchSize:
        raise
    except Exception as error:
        place = _last_line(str(error))
        advice = (
            ". The model branches on a tensor's values: torch.where takes both"
            if "Could not guard" in str(error)
            else ""
        )
        raise ValueError(f"torch.export refuses this model or input: {first_line(error)}{place}{advice}") from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    for node in program.graph.nodes:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise ValueError(
                f"the operator {operator(node)} runs a graph of its own{place_of(node)}, which cannot be followed: "
                "choose between branches in Python, by what is no tensor, or compute both and take one by torch.where"
            )
    return program


def _written_out(graph: torch.fx.Graph, known: Container[str] | None, done: Container[Any]) -> dict[Any, Any]:
    """How torch writes each operator that is neither known nor done, and but a name for several others."""
    nodes = [node for node in graph.nodes if known is not None and operator(node) not in known]
    targets = {node.target for node in nodes if operator(node) not in CHECKED}
    strange = [target for target in targets if isinstance(target, torch._ops.OpOverload) and target not in done]
    composite = [target for target in strange if target.has_kernel_for_dispatch_key(COMPOSITE)]
    table = torch.export.default_decompositions() if composite else {}
    return {target: table[target] for target in composite if target in table}


def _own(model: nn.Module) -> dict[Any, Any]:
    """The memo of a copy that has the model's own values, which exporting does not read, and shares their memory."""
    own: dict[Any, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    storages = [tensor.untyped_storage() for tensor in own.values() if tensor.layout == torch.strided]
    return own | {"torch": {storage._cdata: storage for storage in storages}}  # torch's own memo, of memory


def without_cache(model: nn.Module) -> nn.Module:
    """The model, told to keep no cache of what it has computed, as those of the package transformers do by default."""
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "use_cache", False):
            config.use_cache = False
    return model


def two_or_more(inputs: Inputs) -> Inputs:
    """A batch of one input twice over, since torch.export takes a size of 1 for a constant; others as they are."""
    return on_each(lambda x: torch.cat([x, x]) if x.ndim and len(x) == 1 else x, inputs)


def _make_functional(graph: torch.fx.Graph, known: Container[str] | None) -> bool:
    """Whether all operators are known and none has side effects, once those in IN_PLACE are replaced by functions."""
    functions: dict[torch.fx.Node, Any] = {}
    holders: dict[int, list[torch.fx.Node]] = defaultdict(list)  # the nodes so far that share a memory
    place = {node: number for number, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        value = node.meta.get("val")
        if node.op == "call_function":
            name = operator(node)
            if name in IN_PLACE:
                # Where nobody reads the memory under an older name, and numbers have one format, both do the same.
                older = holders[value.untyped_storage()._cdata]
                read = any(place[user] > place[node] for other in older for user in other.users)
                formats = {other.meta["val"].dtype for other in node.all_input_nodes}
                if read or any(other.op == "placeholder" for other in older) or formats != {value.dtype}:
                    return False
                name = name.removesuffix("_")
                functions[node] = getattr(getattr(torch.ops.aten, name), node.target._overloadname)
            elif isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
                return False
            sizes = value is None or isinstance(value, Number)  # or assertions, which give nothing
            strange = not sizes and known is not None and name not in known
            if strange or name in TRAINING and node.args[TRAINING[name]]:
                return False
        elif node.op not in ("placeholder", "output"):
            return False
        for tensor in value if isinstance(value, list | tuple) else [value]:
            if isinstance(tensor, Tensor):
                holders[tensor.untyped_storage()._cdata].append(node)
    for node, function in functions.items():
        node.target = function
    return True


def weight_keys(program: torch.export.ExportedProgram) -> dict[torch.fx.Node, str]:
    """The parameter or buffer that each such placeholder stands for."""
    signature = program.graph_signature
    keys = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    return {node: keys[node.name] for node in program.graph.nodes if node.op == "placeholder" and node.name in keys}


def layer_weight(node: torch.fx.Node) -> tuple[torch.fx.Node, int]:
    """The weight of one of LAYERS, and the axis of it along which lie the units that the layer gives.

    A product takes them from the columns of its matrix, and so from the rows of one that is turned for it.
    """
    weight = cast(torch.fx.Node, node.args[LAYERS[operator(node)][1]])
    if operator(node) in AFFINE:
        return weight, 0
    is_turned = operator(weight) in MOVING
    return (weight.all_input_nodes[0], 0) if is_turned else (weight, 1)


def ordered(program: torch.export.ExportedProgram, inputs: Inputs) -> tuple[Tensor, ...]:
    """The inputs in the order of a graph's placeholders."""
    if isinstance(inputs, Mapping):
        return tuple(inputs[name] for name in names_of(program))
    return tensors_of(inputs)


def names_of(program: torch.export.ExportedProgram) -> tuple[str, ...]:
    """The names of a graph's inputs, in the order of its placeholders; none if it was exported without."""
    _, named = program.call_spec.in_spec.children()
    return tuple(named.context or ())


def given(
    program: torch.export.ExportedProgram, weights: Mapping[str, Tensor], inputs: Inputs
) -> dict[torch.fx.Node, Any]:
    """The values of a graph's placeholders: these weights and inputs, and the model's own constants."""
    keys, waiting = weight_keys(program), iter(ordered(program, inputs))
    constants = program.graph_signature.inputs_to_lifted_tensor_constants
    own = {**program.constants, **program.state_dict}
    values: dict[torch.fx.Node, Any] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node in keys:
            # What is no weight (the constants of a normalisation, say) is the model's own.
            key = keys[node]
            values[node] = weights[key] if key in weights else own[key]
        elif node.op == "placeholder":
            values[node] = program.constants[constants[node.name]] if node.name in constants else next(waiting)
    return values


def number(size: Any) -> Any:
    """A size, or what is computed of sizes, as a plain number: that of the example where the graph takes any.

    None if it depends on values.
    """
    return size if isinstance(size, int | float) else size.node.hint


def operator(node: torch.fx.Node) -> str:
    """The plain name of the operator that a node calls."""
    return getattr(node.target, "__name__", "").split(".")[0] if node.op == "call_function" else ""


def is_layer(node: torch.fx.Node) -> bool:
    """Whether a node is a linear layer or a convolution."""
    return operator(node) in AFFINE and operator(node) not in NORMS


def place_of(node: torch.fx.Node) -> str:
    """Where in the model's code a node comes from, or else which module calls it, as the end of a message."""
    return _last_line(node.stack_trace or "") or f", called in {module_of(node)}"


def module_of(node: torch.fx.Node) -> str:
    """The innermost module that calls a node, in words."""
    paths = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
    return repr(paths[-1]) if paths else "the model itself"


def _last_line(trace: str) -> str:
    """The last line of code outside of torch in a stack trace, or inside if there is no other; nothing if none."""
    places = re.findall(r'File "([^<].*)", line (\d+)', trace)
    own = [(file, line) for file, line in places if not file.startswith(os.path.dirname(torch.__file__))]
    return ", called at {}:{}".format(*(own or places)[-1]) if places else ""


Visit = Callable[[torch.fx.Node, list[Any], Callable[..., Any]], Any]


def run(program: torch.export.ExportedProgram, weights: Mapping[str, Tensor], inputs: Inputs, visit: Visit) -> None:
    """Compute a graph node by node, each by ``visit(node, arguments, compute)``, which returns the node's value.

    Raises ValueError, naming the operator, if one cannot be computed, as for number formats that do not go together.
    """
    for node, args, kwargs, values in walk(program, weights, inputs):
        values[node] = visit(node, list(args), functools.partial(compute, node, **kwargs))


Step = tuple[torch.fx.Node, tuple[Any, ...], dict[str, Any], dict[torch.fx.Node, Any]]


def walk(program: torch.export.ExportedProgram, weights: Mapping[str, Tensor], inputs: Inputs) -> Iterator[Step]:
    """The operators of a graph in order, each with its arguments and the values so far: the caller sets the node's.

    Values are dropped once nothing needs them any more.
    """
    values = given(program, weights, inputs)
    last = {used: node for node in program.graph.nodes for used in node.all_input_nodes}
    for node in program.graph.nodes:
        if node.op == "call_function":
            yield node, *torch.fx.map_arg((node.args, node.kwargs), values.__getitem__), values
        for used in node.all_input_nodes:
            if last[used] is node:
                del values[used]


class Programs:
    """The graphs of a model, each exported once: one is of one shape of inputs."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.by_shapes: dict[Any, torch.export.ExportedProgram] = {}

    def of(self, inputs: Inputs) -> torch.export.ExportedProgram:
        """The graph for inputs of these shapes."""
        shapes = shapes_of(inputs)
        if shapes not in self.by_shapes:
            self.by_shapes[shapes] = export(self.model, inputs)
        return self.by_shapes[shapes]


def compute(node: torch.fx.Node, /, *args: Any, **kwargs: Any) -> Any:
    """What a node gives for these arguments."""
    # A view was exported for strides that other inputs, or a batch of models, need not have.
    target = torch.reshape if operator(node) == "view" else cast(Callable[..., Any], node.target)
    try:
        return target(*args, **kwargs)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(
            f"the operator {operator(node)} cannot be computed with these weights and inputs{place_of(node)}: "
            f"{first_line(error)}"
        ) from error


def first_line(error: Exception) -> str:
    """The first line of what an error says."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))


def each_model(function: Callable[..., Any], in_dims: Any = 0, chunk: int = 1) -> Callable[..., Any]:
    """``function`` of one model's weights, for many along a leading axis, of which ``chunk`` go through at once."""
    over_all = torch.func.vmap(function, in_dims=in_dims, chunk_size=chunk)

    @functools.wraps(function)
    def of_many(*args: Any) -> Any:
        with warnings.catch_warnings():
            # Some operators (norms, attention) go model by model inside torch, which chunks of one do anyway.
            warnings.filterwarnings("ignore", "There is a performance drop because we have not yet implemented")
            return over_all(*args)

    return of_many
