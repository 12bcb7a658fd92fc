"""What a value holds, as JSON values: alike for what computes alike, and different for whatever may not."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import os
import platform
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lab.bookkeeping.code import (
    PACKAGES,
    ROOT,
    code_fingerprint,
    constants,
    fingerprint,
    imported_modules,
    module_path,
    module_source,
    outside_packages,
)
from lab.bookkeeping.same_code import oldest

# The same instructions on every x86 machine: wider ones round otherwise, and training makes other networks of that.
# With these, tables and stored outputs come out as they are committed. To be set before torch first computes.
if platform.machine() in ("x86_64", "AMD64"):
    os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
OWN_TO_EVERY_MODULE = frozenset(vars(nn.Module()))  # what torch keeps in a module besides what its author does
_UNCHANGED: dict[int, str] = {}  # the digests of tensors that stay as they are, by identity


def content(value: Any) -> Any:
    """What a value holds, as JSON values. Raises TypeError for one whose content cannot be told, such as a lambda.

    Of a function, a class, a module or a dataclass its code counts, too. The order of a dict counts: sums depend on it.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, Tensor):
        return ["tensor", str(value.dtype), list(value.shape), value.device.type, _digest(value)]
    if isinstance(value, Mapping):
        return ["dict", [[content(key), content(entry)] for key, entry in value.items()]]
    if isinstance(value, set | frozenset):
        return ["set", sorted(map(content, value), key=repr)]
    if isinstance(value, list | tuple):
        return [type(value).__name__, [content(entry) for entry in value]]
    if isinstance(value, nn.Module):
        return ["module", *_module_content(value)]
    if isinstance(value, type):
        return ["class", *_class_content(value)]
    if dataclasses.is_dataclass(value):
        fields = {field.name: content(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return ["dataclass", _class_content(type(value)), fields]
    if isinstance(value, functools.partial):
        return ["partial", content(value.func), content(value.args), content(value.keywords)]
    if isinstance(value, types.FunctionType):
        settings = [content(value.__defaults__), content(value.__kwdefaults__)]
        return ["function", function_fingerprint(value), reassigned(value.__module__), settings]
    if isinstance(value, types.BuiltinFunctionType) and isinstance(value.__self__, types.ModuleType | type | None):
        package = str(value.__module__ or value.__self__).partition(".")[0]
        return ["built-in", str(value.__module__), value.__qualname__, _version(package)]
    if isinstance(value, torch.device):
        return ["device", str(value)]
    raise TypeError(f"what {value!r} holds cannot be told, so that nothing can be kept by it")


def function_fingerprint(function: Callable[..., Any], root: Path = ROOT) -> str:
    """What a function does: its name, its module's code with all that it imports, and the versions from elsewhere.

    Raises TypeError for a lambda, and for one that holds values of its own, as a function in a function may.
    """
    name = function.__qualname__
    if "<" in name or function.__closure__ or hasattr(function, "__wrapped__"):  # <lambda>, or <locals> of another
        raise TypeError(f"what {name} does cannot be told: define a plain function in a module")
    if function.__globals__ is not vars(sys.modules.get(function.__module__, types)):
        raise TypeError(f"what {name} does cannot be told: {function.__module__!r} is no module, move it into one")
    return fingerprint(name, oldest(module_fingerprint(function.__module__, root)))


def module_fingerprint(module: str, root: Path) -> str:
    """What a module does, with all that it imports, and the versions of the packages from elsewhere."""
    package = module.partition(".")[0]
    if _is_installed(package):
        return fingerprint(module, _version(package))
    source = _source_of(module, root)
    versions = {name: _version(name) for name in outside_packages(source, root)}
    return fingerprint(code_fingerprint(source, root), versions)


def reassigned(module: str) -> list[Any]:
    """The constants that this module, or one that it imports, holds by now, where they are not what its code says.

    Raises ImportError for modules that were loaded from another folder than the code is read from.
    """
    values = []
    for name, written in _constants_of_all(module).items():
        loaded = sys.modules.get(name)
        if loaded is None:  # it is imported inside a function, later
            continue
        _check_file(name, str(getattr(loaded, "__file__", None)))
        for constant, value in written.items():
            now = vars(loaded).get(constant, value)
            if type(now) is not type(value) or now != value:
                values.append([constant, content(now)])
    return sorted(values, key=repr)


@functools.cache
def _constants_of_all(module: str) -> dict[str, dict[str, Any]]:
    # Once, for the files may be edited while a run goes on with what it has loaded.
    source = _source_of(module, ROOT)
    others = {name: constants(module_source(name)) for name in imported_modules(source)}
    return {module: constants(source)} | others


@functools.cache
def _check_file(module: str, file: str) -> None:
    if module.partition(".")[0] in PACKAGES and Path(file).resolve() != module_path(module):
        raise ImportError(f"{module} was loaded from {file}, and not from {ROOT}: mend the PYTHONPATH")


def surroundings(device: str = "cpu") -> list[Any]:
    """What else the last bits depend on: the kind of processor, the threads that share a sum, torch's settings.

    And Python's version: since 3.12 its ``sum`` rounds in another way. Raises ValueError for the device ``auto``.
    """
    if device == "auto":
        raise ValueError("device 'auto' may be one or another: nothing can be kept by it, pick_device names it")
    cuda = device.startswith("cuda")
    processor = torch.cuda.get_device_name(device) if cuda else torch.backends.cpu.get_cpu_capability()
    return [
        processor,
        torch.get_num_threads(),
        str(torch.get_default_dtype()),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        platform.python_version_tuple()[:2],
        *([os.environ["MKL_CBWR"]] if "MKL_CBWR" in os.environ else []),  # how MKL sums, where somebody says so
    ]


@contextlib.contextmanager
def unchanged(*tensors: Tensor) -> Iterator[None]:
    """Within, these tensors stay as they are, so that what they hold is computed once."""
    _UNCHANGED.update({id(tensor): _digest(tensor) for tensor in tensors})
    try:
        yield
    finally:
        for tensor in tensors:
            _UNCHANGED.pop(id(tensor), None)


def _digest(tensor: Tensor) -> str:
    if id(tensor) in _UNCHANGED:
        return _UNCHANGED[id(tensor)]
    dense = tensor.detach().cpu().contiguous()
    # One value counts as contiguous whatever its stride, and can then not be read as bytes.
    raw = dense.as_strided((dense.numel(),), (1,)).view(torch.uint8).numpy()
    return hashlib.sha256(raw.data).hexdigest()


def _module_content(model: nn.Module) -> list[Any]:
    """The classes and attributes of a module's parts, constants that its state dict leaves out, and its weights."""
    parts = []
    kinds = {type(part): content(type(part)) for part in model.modules()}
    for name, part in model.named_modules(remove_duplicate=False):
        if any(getattr(part, hooks) for hooks in HOOKS):
            raise TypeError(f"what the hooks of {name or 'the model'} do cannot be told")
        left_out = {key: part._buffers[key] for key in sorted(part._non_persistent_buffers_set)}
        attributes = {key: value for key, value in sorted(vars(part).items()) if key not in OWN_TO_EVERY_MODULE}
        parts.append([name, kinds[type(part)], part.training, content(_on_cpu(left_out)), content(attributes)])
    # Of weights that parts share, the first name alone is a parameter.
    parameters = [[name, parameter.requires_grad] for name, parameter in model.named_parameters()]
    return [parts, parameters, content(_on_cpu(model.state_dict()))]


def _on_cpu(tensors: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
    # Where a model happens to lie does not matter: whoever computes with it puts it on a device.
    return {key: tensor if tensor is None else tensor.cpu() for key, tensor in tensors.items()}


def _class_content(kind: type) -> list[Any]:
    if "<locals>" in kind.__qualname__:
        raise TypeError(f"what the class {kind.__qualname__} does cannot be told: define it in a module")
    return [kind.__qualname__, _loaded_fingerprint(kind.__module__), reassigned(kind.__module__)]


@functools.cache
def _loaded_fingerprint(module: str) -> str:
    # Once: the files may be edited during a long run, which goes on with the code that it has loaded.
    return oldest(module_fingerprint(module, ROOT))


def _source_of(module: str, root: Path) -> str:
    package = module.partition(".")[0]
    if package in PACKAGES:
        return module_source(module, root)
    if _is_installed(package):
        return ""  # its version stands for it
    try:
        return inspect.getsource(sys.modules[module])  # a script, or a test
    except (KeyError, OSError, TypeError) as error:
        raise TypeError(f"the code of {module!r} cannot be read: move what is kept into a module") from error


def _is_installed(package: str) -> bool:
    """Whether a package is Python's own, or installed with a version that tells its code."""
    return package not in PACKAGES and (package in sys.stdlib_module_names or package in _distributions())


@functools.cache
def _version(package: str) -> str | None:
    """The version of a package by the name that it is imported by; None of Python's own, and of what is not there.

    Raises TypeError for one that is neither installed nor of this project, as its code may change by itself.
    """
    if package in sys.stdlib_module_names:
        return None
    names = sorted(set(_distributions().get(package, [])))
    if not names and importlib.util.find_spec(package) is not None:
        raise TypeError(f"what {package!r} does cannot be told: it is neither installed nor a part of this project")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names) or None


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()
