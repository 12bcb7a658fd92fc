"""What a value holds is told apart from whatever may compute something else, and refused where it cannot be told."""

import functools
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import gelu, relu

from lab.bookkeeping import content as content_module
from lab.bookkeeping.code import fingerprint
from lab.bookkeeping.content import content, function_fingerprint, reassigned, surroundings, unchanged
from lab.data import load
from lab.networks import build

VIT = sys.modules["lab.networks.vit"]  # the package gives a function by this name
WEIGHTS = {"bias": torch.zeros(6), "weight": torch.arange(6.0).reshape(2, 3)}


def one_changed(key, index):
    tensor = WEIGHTS[key].clone()
    tensor.view(-1)[index] += 1e-6
    return WEIGHTS | {key: tensor}


def all_differ(values):
    return len({fingerprint(content(value)) for value in values}) == len(values)


def all_alike(values):
    return len({fingerprint(content(value)) for value in values}) == 1


def test_every_value_shape_key_and_dtype_of_tensors_counts_and_their_order():
    assert all_differ(
        [
            WEIGHTS,
            *(one_changed(key, index) for key in WEIGHTS for index in range(6)),
            WEIGHTS | {"weight": WEIGHTS["weight"].reshape(3, 2)},
            WEIGHTS | {"weight": WEIGHTS["weight"].flatten()},
            WEIGHTS | {"weight": WEIGHTS["weight"].T},
            WEIGHTS | {"weight": WEIGHTS["weight"].double()},
            # The same bytes under another type, or sign.
            WEIGHTS | {"bias": torch.zeros(6, dtype=torch.int32)},
            WEIGHTS | {"bias": -torch.zeros(6)},
            {"bias": WEIGHTS["bias"], "weights": WEIGHTS["weight"]},
            {"bias": WEIGHTS["bias"]},
            WEIGHTS | {"more": torch.zeros(0)},
            {},
            # A sum over the entries takes them in this order.
            {key: WEIGHTS[key] for key in reversed(WEIGHTS)},
        ]
    )


def test_how_tensors_lie_in_memory_does_not_count():
    strided = WEIGHTS | {"weight": WEIGHTS["weight"].T.contiguous().T}
    assert not strided["weight"].is_contiguous()
    parameters = {key: nn.Parameter(tensor) for key, tensor in WEIGHTS.items()}
    view = {key: torch.stack([tensor, tensor + 1])[0] for key, tensor in WEIGHTS.items()}
    assert all_alike([WEIGHTS, strided, parameters, view])
    assert all_alike([torch.arange(4)[2:3], torch.tensor([2]), torch.arange(4)[2::2]])
    assert all_alike([torch.tensor(2.0), torch.arange(4.0)[2]])


def test_a_tensor_that_is_changed_in_place_counts_as_it_is_now():
    array = np.zeros(3, np.float32)
    tensor = torch.from_numpy(array)
    seen = [content(tensor)]
    tensor[0] = 1
    seen.append(content(tensor))
    tensor.data[1] = 1  # torch does not count these changes
    seen.append(content(tensor))
    array[2] = 1
    seen.append(content(tensor))
    assert len({fingerprint(each) for each in seen}) == 4


def test_of_tensors_that_stay_the_digest_is_computed_once(monkeypatch):
    tensor, other = torch.zeros(3), torch.zeros(3)
    plain = content(tensor)
    with unchanged(tensor):
        monkeypatch.setattr(content_module.hashlib, "sha256", lambda data: SimpleNamespace(hexdigest=lambda: "new"))
        assert content(tensor) == plain
        assert content(other) != plain
    assert content(tensor) != plain


@dataclass(frozen=True)
class Setting:
    rate: float = 1.0
    inner: object = None


@dataclass(frozen=True)
class Other:
    rate: float = 1.0
    inner: object = None


def double(x, times=2):
    return times * x


def triple(x, times=3):
    return times * x


def factory(times):
    def multiply(x, times=times):
        return times * x

    return multiply


def test_plain_values_of_other_types_or_signs_are_told_apart():
    values = [1, 1.0, True, "1", "True", None, "None", 0.0, -0.0, float("nan"), [1], (1,), {1}, {1: 1}, [[1]], [1, 1]]
    assert all_differ(values)
    assert all_alike([float("nan"), -float("nan"), np.nan])
    assert all_alike([{1, 2, 3}, {3, 2, 1}, frozenset((2, 1, 3))]), "a set has no order"
    assert all_differ([int, float, dict, nn.Linear, Setting, Other])


def test_dataclasses_count_by_class_and_by_every_field_however_deep():
    inner = [Setting(inner=Setting(inner=value)) for value in (0, 1, None, torch.zeros(1), torch.ones(1))]
    assert all_differ([Setting(), Setting(2.0), Other(), *inner, Setting(inner={"rate": 1.0})])
    assert all_alike([Setting(inner=torch.zeros(1)), Setting(inner=torch.zeros(1))])


def test_functions_count_by_what_they_do_and_what_is_bound_to_them():
    partials = [functools.partial(double, 1), functools.partial(double, times=1), functools.partial(triple, 1)]
    assert all_differ([double, triple, *partials, functools.partial(double, times=2), relu, gelu, torch.relu])


@pytest.mark.parametrize(
    "value",
    [
        lambda x: x,
        factory(2),  # it is not told from factory(3)
        functools.partial(lambda x: x),
        object(),
        np.zeros(2),
        [1, object()],
        {"a": lambda x: x},
        "text".upper,
        [1].append,
        functools.lru_cache(double),
        b"bytes",
    ],
)
def test_what_cannot_be_told_is_refused(value):
    with pytest.raises(TypeError, match="cannot be told"):
        content(value)


class Scaled(nn.Module):
    """Its scale is seen neither in its weights nor in what it prints."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.layer, self._scale = nn.Linear(2, 2), scale

    def forward(self, x):
        return self._scale * self.layer(x)


class Shifted(Scaled):
    def forward(self, x):
        return self._scale + self.layer(x)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.second.load_state_dict(self.first.state_dict())
        self.register_buffer("constant", torch.zeros(2), persistent=False)


def seeded(build_one, *args, **kwargs):
    torch.manual_seed(0)
    return build_one(*args, **kwargs)


def changed(model, change):
    change(model)
    return model


def tie(model):
    model.second.weight = model.first.weight


def test_models_count_by_their_class_their_attributes_and_their_weights():
    scaled = [seeded(Scaled), seeded(Scaled, 2.0), seeded(Shifted), Scaled()]
    plain = [
        seeded(Plain),
        changed(seeded(Plain), lambda m: m.eval()),
        changed(seeded(Plain), tie),
        changed(seeded(Plain), lambda m: m.constant.add_(1)),
        changed(seeded(Plain), lambda m: m.first.weight.requires_grad_(False)),
        changed(seeded(Plain), lambda m: setattr(m, "note", "new")),
    ]
    assert all_differ([*scaled, *plain])
    assert all_alike([seeded(Plain), seeded(Plain)])
    assert all_alike([seeded(Scaled), seeded(Scaled)])


def test_settings_of_torch_s_own_modules_count():
    layer = nn.TransformerEncoderLayer
    assert all_differ(
        [
            seeded(nn.MultiheadAttention, 12, 2),
            seeded(nn.MultiheadAttention, 12, 3),
            seeded(nn.MultiheadAttention, 12, 3, batch_first=True),
            seeded(layer, 12, 3, 8, 0.0),
            seeded(layer, 12, 3, 8, 0.0, activation="gelu"),
            seeded(layer, 12, 3, 8, 0.0, norm_first=True),
            nn.Softmax(0),
            nn.Softmax(1),
            nn.Sequential(nn.ReLU()),
            nn.ReLU(),
        ]
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.register_forward_hook(lambda *_: None),
        lambda m: m.layer.register_forward_pre_hook(lambda *_: None),
        lambda m: setattr(m, "forward", lambda x: x),
        lambda m: setattr(m, "rule", lambda x: x),
    ],
)
def test_models_with_hooks_or_unknown_parts_are_refused(change):
    with pytest.raises(TypeError, match="cannot be told"):
        content(changed(Scaled(), change))


def test_a_class_that_a_function_makes_is_refused():
    class Local(nn.Module):
        pass

    with pytest.raises(TypeError, match="what the class .*Local does cannot be told: define it in a module"):
        content(Local())


def test_a_constant_that_is_set_anew_counts(monkeypatch):
    model = build("vit", load("digits"), 16)
    before = content(model)
    assert reassigned("lab.networks") == []
    monkeypatch.setattr(VIT, "HEADS", 2)  # as many weights, another function
    assert content(model) != before
    assert reassigned("lab.networks") == [["HEADS", "2"]], "a module that is imported on the way"
    monkeypatch.setattr(VIT, "HEADS", 4)
    assert content(model) == before


def test_modules_that_were_loaded_from_elsewhere_are_refused(monkeypatch):
    monkeypatch.setattr(VIT, "__file__", "/somewhere/else/vit.py")
    with pytest.raises(ImportError, match="vit was loaded from /somewhere/else/vit.py, and not from"):
        reassigned("lab.networks")


def test_versions_of_packages_from_elsewhere_count(monkeypatch):
    def after(package):
        with monkeypatch.context() as patch:
            version = content_module._version
            patch.setattr(content_module, "_version", lambda name: "99" if name == package else version(name))
            return function_fingerprint(double)

    plain = function_fingerprint(double)
    assert after("torch") != plain
    assert after("PIL") != plain, "which the data sets of this test import"
    assert after("matplotlib") == plain


def test_a_package_whose_code_has_no_version_is_refused(monkeypatch):
    monkeypatch.setattr(content_module, "outside_packages", lambda source, root: ["planting"])
    with pytest.raises(TypeError, match="'planting' does cannot be told: it is neither installed nor a part of this"):
        function_fingerprint(double)
    monkeypatch.setattr(content_module, "outside_packages", lambda source, root: ["not_there"])
    assert function_fingerprint(double), "an extra that nobody installed"


def test_a_function_of_a_notebook_is_refused():
    cell = {"__name__": "many"}
    exec("def measure(x):\n    return x\n", cell)
    with pytest.raises(TypeError, match="what measure does cannot be told: 'many' is no module"):
        function_fingerprint(cell["measure"])


def test_what_the_last_bits_depend_on_counts(monkeypatch):
    assert torch.get_num_threads() == 1
    plain = surroundings()
    for name, value in [
        ("get_num_threads", 2),
        ("get_default_dtype", torch.float64),
        ("get_float32_matmul_precision", "medium"),
        ("are_deterministic_algorithms_enabled", True),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(torch, name, lambda value=value: value)
            assert surroundings() != plain, name
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "NONE")
        assert surroundings() != plain
    with monkeypatch.context() as patch:
        patch.setenv("MKL_CBWR", "AVX512")
        assert surroundings() != plain
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"a GPU called {device}")
    assert surroundings("cuda")[0] == "a GPU called cuda"
    with pytest.raises(ValueError, match="device 'auto' may be one or another"):
        surroundings("auto")
