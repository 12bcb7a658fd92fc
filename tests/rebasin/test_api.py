"""What a user of the package touches: any kind of model in and the same kind out, and errors in the user's words."""

import importlib.util
import inspect
import io
from pathlib import Path

import pytest
import torch
from networks import Branches, Chain, drawn, images
from torch import nn

import rebasin
from rebasin import Permutation, PermutationSpec, match, merge
from rebasin.matching import MATCHERS
from rebasin.merging import METHODS
from rebasin.progress import track
from rebasin.spec import Part
from rebasin.weights import check_device, grouped, stack, take, to


@pytest.fixture(scope="module")
def spec():
    return rebasin.trace(Chain(), images(2))


def chain(seed):
    model = Chain().double().train()
    model.load_state_dict(drawn(model, seed=seed))
    return model


@pytest.fixture
def modules():
    return [chain(seed) for seed in range(4)]


def state(model):
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def stacked(models):
    return stack([state(model) for model in models])


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def data(by, model):
    labels = torch.randint(3, (40,), generator=torch.Generator().manual_seed(0))
    loader = [(images(40), labels)]
    return {"model": model, "loader": loader} if by in ("activations", "straight-through") else {}


@pytest.mark.parametrize("by", MATCHERS)
def test_a_matcher_takes_every_kind_of_model_and_gives_back_the_same_kind(spec, modules, by):
    a, b = modules[:2]
    before = [state(model) for model in (a, b)]
    options = data(by, Chain().double())
    by_module = match(spec, a, b, by=by, **options)
    by_state = match(spec, a.state_dict(), b.state_dict(), by=by, **options)
    of_two = match(spec, modules[::2], modules[1::2], by=by, **options)
    by_stack = match(spec, stacked(modules[::2]), stacked(modules[1::2]), by=by, **options)
    for single in (by_module, by_state):
        assert same(single.permutation.indices, take(of_two.permutation.indices, 0))
    assert same(of_two.permutation.indices, by_stack.permutation.indices)
    assert of_two.objective.shape == (2,)

    moved = by_module.apply(b)
    assert type(moved) is Chain and moved.training and next(moved.parameters()).dtype == torch.float64
    assert same(moved.state_dict(), by_state.apply(b.state_dict()))
    listed = of_two.apply(modules[1::2])
    assert [type(model) for model in listed] == [Chain, Chain] and same(listed[0].state_dict(), moved.state_dict())
    assert same(take(by_stack.apply(stacked(modules[1::2])), 1), listed[1].state_dict())
    assert all(same(model.state_dict(), kept) for model, kept in zip((a, b), before, strict=True))


@pytest.mark.parametrize("by", METHODS)
def test_a_merging_method_takes_every_kind_of_model_and_gives_one_record(spec, modules, by):
    before = [state(model) for model in modules]
    by_module = merge(spec, modules, by=by)
    by_state = merge(spec, [model.state_dict() for model in modules], by=by)
    by_stack = merge(spec, stack(before), by=by)
    batched = merge(spec, stack([stack(before[:2]), stack(before[2:])]), by=by)
    assert type(by_module.model) is Chain and by_module.model.training
    assert same(by_module.model.state_dict(), by_module.weights)
    for record in (by_state, by_stack):
        assert isinstance(record.model, dict) and same(record.model, by_module.weights)
        assert record.permutation.batch == (4,) and record.rounds.shape == record.sweeps.shape == ()
    assert batched.permutation.batch == (2, 2) and batched.rounds.shape == batched.sweeps.shape == (2,)
    assert same(take(batched.weights, 1), merge(spec, modules[2:], by=by).weights)
    mean = rebasin.mean(by_module.permutation.apply(stack(before)))
    for key, tensor in by_module.weights.items():
        torch.testing.assert_close(tensor, mean[key])
    assert all(same(model.state_dict(), kept) for model, kept in zip(modules, before, strict=True))


class Tied(nn.Module):
    """A table, and an output layer that may be the same tensor."""

    def __init__(self, tied):
        super().__init__()
        self.table, self.out = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
        if tied:
            self.out.weight = self.table.weight


def test_one_tensor_of_two_names_cannot_become_two():
    torch.manual_seed(0)
    tied, loose = Tied(tied=True), Tied(tied=False)
    told = "'table.weight' shares its memory with 'out.weight', and they get different values"
    with pytest.raises(ValueError, match=told):
        rebasin.interpolate(tied, loose, 1.0)
    assert same(rebasin.interpolate(loose, tied, 1.0).state_dict(), tied.state_dict())
    assert same(rebasin.interpolate(tied, tied, 0.5).state_dict(), tied.state_dict())
    assert same(rebasin.interpolate(tied.state_dict(), loose, 1.0), loose.state_dict())


class Keeping(nn.Linear):
    """Keeps its answers in evaluation until it is told to train, as some vision transformers keep their biases."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.kept = {}

    def train(self, mode=True):
        self.kept = {} if mode else self.kept
        super().train(mode)  # and gives back nothing, as those do

    def forward(self, x):
        if self.training:
            return super().forward(x)
        if "answer" not in self.kept:
            self.kept["answer"] = super().forward(x).detach()
        return self.kept["answer"]


class Folding(nn.Linear):
    """Adds a second weight to its own in evaluation, and takes it away in training, as layers of low rank do."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.more, self.folded = nn.Parameter(torch.randn(sizes[1], sizes[0])), False

    def train(self, mode=True):
        if mode == self.folded:
            self.weight.data += self.more.data if self.folded is False else -self.more.data
            self.folded = not self.folded
        return super().train(mode)


def test_a_merged_module_forgets_what_the_first_has_kept_of_its_evaluations():
    torch.manual_seed(0)
    a, b, x = Keeping(3, 2), Keeping(3, 2), torch.randn(1, 3)
    a.eval(), b.eval()
    before = a(x)
    middle = rebasin.interpolate(a, b, 0.5)
    assert not middle.training and not middle.kept
    torch.testing.assert_close(middle(x), (before + b(x)) / 2)
    assert a.kept, "the model that was given is as it was"
    assert rebasin.trace(nn.Sequential(a, nn.ReLU(), nn.Linear(2, 1)), x).sizes == {"0": 2}
    assert rebasin.trace(a, x).sizes == {}
    folded = Folding(3, 2).eval()
    assert same(rebasin.interpolate(folded, folded, 0.5).state_dict(), folded.state_dict()), "it keeps no tensors"


def test_where_there_is_no_point_between_two_values_it_is_said():
    infinite, finite = {"mask": torch.tensor([torch.inf, 0.0])}, {"mask": torch.tensor([7.0, 1.0])}
    assert rebasin.interpolate(infinite, finite, 0.0)["mask"].tolist() == [torch.inf, 0]
    assert rebasin.interpolate(infinite, finite, 1.0)["mask"].tolist() == [7, 1]
    assert rebasin.interpolate(infinite, infinite, 0.5)["mask"].tolist() == [torch.inf, 0]
    opposite = {"mask": torch.tensor([-torch.inf, 0.0])}
    for other in (finite, opposite):
        for weight in (0.25, 0.5, 0.75):
            with pytest.raises(ValueError, match="'mask' is infinite where a and b differ: there is no point between"):
                rebasin.interpolate(infinite, other, weight)


def test_what_is_called_by_nearly_its_name_is_suggested(spec, modules):
    with pytest.raises(ValueError, match="unknown matcher 'activation': there are .*; did you mean 'activations'?"):
        match(spec, *modules[:2], by="activation")


def test_the_path_of_a_file_is_no_model(spec):
    with pytest.raises(TypeError, match=r"got str: load_weights\(path, spec\) reads a file"):
        merge(spec, ["a.safetensors", "b.safetensors"])


def test_interpolate_and_mending_give_back_the_kind_that_they_are_given(modules):
    a, b = modules[:2]
    middle = rebasin.interpolate(a, b, 0.25)
    assert type(middle) is Chain
    assert same(middle.state_dict(), rebasin.interpolate(a.state_dict(), b.state_dict(), 0.25))
    repaired = rebasin.repair(a, middle, [a, b], images(20))
    assert type(repaired) is Chain
    assert same(repaired.state_dict(), rebasin.repair(a, middle.state_dict(), stacked([a, b]), images(20)))
    norms = Branches().double()
    assert type(rebasin.reset_norms(norms, norms, images(20))) is Branches


def test_a_merge_is_mended_at_its_end_or_at_every_stage(spec, modules):
    mend = rebasin.mender(modules[0], images(30))
    plain = merge(spec, modules)
    end, stages = (merge(spec, modules, mend=mend, mend_at=at) for at in ("end", "every stage"))
    by_hand = rebasin.repair(modules[0], plain.weights, plain.permutation.apply(stacked(modules)), images(30))
    assert same(end.weights, by_hand) and same(end.model.state_dict(), by_hand)
    assert same(end.stages[-1].weights, plain.stages[-1].weights)
    assert same(stages.weights, take(stages.stages[-1].weights, 0))
    assert not same(stages.weights, end.weights) and not same(end.weights, plain.weights)
    for by in ("mean", "many"):
        assert not same(merge(spec, modules, by=by, mend=mend).weights, merge(spec, modules, by=by).weights)
        with pytest.raises(ValueError, match=f"'{by}' has no stages: mend_at is 'end'"):
            merge(spec, modules, by=by, mend=mend, mend_at="every stage")
    with pytest.raises(ValueError, match="mend_at is 'end' or 'every stage', not 'never'"):
        merge(spec, modules, mend=mend, mend_at="never")


def test_arguments_in_another_order_are_told_as_such(spec, modules):
    a, b = modules[:2]
    message = r"the first argument is the spec, and a Chain was given: match\(spec, a, b\)"
    with pytest.raises(TypeError, match=message):
        match(a, b, spec)
    with pytest.raises(TypeError, match=r"the first argument is the spec, and a list was given: merge\(spec, models\)"):
        merge([a, b], spec)
    for method in METHODS.values():
        with pytest.raises(TypeError, match=rf"the first argument is the spec, .* {method.__name__}\(spec, models\)"):
            method([a, b], spec)
    for matcher in (rebasin.weight_matching, rebasin.frank_wolfe_matching):
        with pytest.raises(TypeError, match=r"the first argument is the spec, and a Chain was given"):
            matcher(a, b, spec)
    with pytest.raises(TypeError, match=r"the first argument is the model, and a Tensor was given: trace\(model, exam"):
        rebasin.trace(images(2), a)
    with pytest.raises(TypeError, match="the example must be a tensor, got int"):
        rebasin.trace(a, [3])
    with pytest.raises(
        TypeError, match=r"the first argument is the model, and a dict was given: repair\(model, merged"
    ):
        rebasin.repair(state(a), a, [a, b], images(9))


def test_what_is_missing_or_unknown_is_named(spec, modules):
    a, b = modules[:2]
    with pytest.raises(ValueError, match="'activations' needs model= and loader="):
        match(spec, a, b, by="activations")
    with pytest.raises(ValueError, match="'straight-through' needs loader="):
        match(spec, a, b, by="straight-through", model=a)
    with pytest.raises(ValueError, match="unknown method 'tree': there are mean, many, hierarchy"):
        merge(spec, [a, b], by="tree")
    with pytest.raises(ValueError, match="'many' has no option 'chunk': there are seed, max_rounds"):
        merge(spec, [a, b], by="many", chunk=3)
    with pytest.raises(ValueError, match="'mean' has no option 'seed': there are none"):
        merge(spec, [a, b], by="mean", seed=3)


@pytest.mark.parametrize("function", [match, merge, *MATCHERS.values(), *METHODS.values()])
def test_everything_after_the_models_is_keyword_only(function):
    names = ("spec", "a", "b") if function is match or function in MATCHERS.values() else ("spec", "models")
    for name, parameter in inspect.signature(function).parameters.items():
        assert (name in names) == (parameter.kind is parameter.POSITIONAL_OR_KEYWORD), name


def test_a_tensor_as_loader_is_one_batch(spec, modules):
    a, b = modules[:2]
    whole = match(spec, a, b, by="activations", model=a, loader=images(40))
    listed = match(spec, a, b, by="activations", model=a, loader=[images(40)])
    assert torch.equal(whole.maximised_by_sweep, listed.maximised_by_sweep)
    with pytest.raises(ValueError, match=r"needs batches of inputs and targets: \(inputs, targets\)"):
        match(spec, a, b, by="straight-through", model=a, loader=images(40))


def test_models_that_are_none_or_of_another_kind_are_refused(spec, modules):
    with pytest.raises(ValueError, match="no models to merge: the list is empty"):
        merge(spec, [])
    with pytest.raises(ValueError, match="no models to merge: weights need a leading axis .* or else pass a list"):
        merge(spec, modules[0])
    with pytest.raises(ValueError, match=r"models\[1\] is many models: pass one dict of tensors"):
        merge(spec, [state(modules[0]), stack([state(modules[1])])])
    with pytest.raises(ValueError, match=r"models\[1\]: the spec has '1.weight', the weights have not"):
        merge(spec, [modules[0], nn.Linear(3, 2)])
    with pytest.raises(TypeError, match="a: a module, a dict of tensors or a list of them is needed, got int"):
        match(spec, 3, modules[0])
    many = Permutation.random(spec, (3,))
    for single in (modules[0], modules[:1]):
        with pytest.raises(ValueError, match=r"leading axes \(3,\) make many models of one: pass a dict of tensors"):
            many.apply(single)


def test_models_on_different_devices_are_told_by_the_first_key(spec, modules):
    a, b = modules[0].state_dict(), to(modules[1].state_dict(), "meta")
    for call in (lambda: match(spec, a, b), lambda: merge(spec, [a, b]), lambda: rebasin.interpolate(a, b, 0.5)):
        with pytest.raises(ValueError, match="'1.weight': .* on cpu, .* on meta"):
            call()
    with pytest.raises(ValueError, match="a: '1.bias' is on meta, others are on cpu"):
        match(spec, {**a, "1.bias": b["1.bias"]}, a)
    elsewhere = Chain().double().to("meta")
    with pytest.raises(ValueError, match="'1.weight': the model is on meta, the weights are on cpu"):
        check_device(elsewhere, a)
    for by in ("activations", "straight-through"):
        with pytest.raises(ValueError, match="'1.weight': the model is on meta, the weights are on cpu"):
            match(spec, a, a, by=by, **data(by, elsewhere))
    with pytest.raises(ValueError, match="the loader gives batches on meta, the weights are on cpu"):
        match(spec, a, a, by="activations", model=modules[0], loader=images(4).to("meta"))
    with pytest.raises(ValueError, match="the inputs are on meta, the weights on cpu"):
        rebasin.repair(modules[0], a, [a, a], images(4).to("meta"))


def test_a_permutation_is_saved_and_loaded_as_plain_tensors(spec):
    permutation = Permutation.random(spec, (3,))
    buffer = io.BytesIO()
    torch.save(permutation.state_dict(), buffer)
    buffer.seek(0)
    loaded = Permutation.from_state_dict(spec, torch.load(buffer, weights_only=True))
    assert same(loaded.indices, permutation.indices)
    with pytest.raises(ValueError, match="groups .* given, the spec has"):
        Permutation.from_state_dict(spec, {"other": torch.arange(3)})


def test_records_are_compared_and_hashed_by_identity_and_specs_by_content(spec, modules):
    again = rebasin.trace(Chain(), images(2))
    assert spec == again and hash(spec) == hash(again) and spec is not again
    fewer = {key: parts if key != "7.weight" else () for key, parts in spec.parts.items()}
    assert spec != PermutationSpec(spec.sizes, fewer, spec.shapes, statistics=spec.statistics, pinned=spec.pinned)
    matching, merged = match(spec, *modules[:2]), merge(spec, modules)
    for record in (matching, merged, matching.permutation, merged.stages[0]):
        assert record == record and len({record, record}) == 1
    assert matching != match(spec, *modules[:2]) and matching.permutation != Permutation.identity(spec)
    assert len({Part("a", 0, torch.arange(3)), Part("a", 0, torch.arange(3))}) == 1


def test_what_is_printed_fits_a_screen_and_says_what_it_is(spec, modules):
    norms = rebasin.trace(Branches(), images(2).float())
    assert repr(norms) == "PermutationSpec(6 groups, 30 units; 3 of 18 entries stay)"
    summary = norms.summary().split("\n")
    assert summary[0].split() == ["group", "units", "lies", "along"]
    assert any(line.startswith("grouped ") and "3 in each of 3 blocks" in line for line in summary)
    assert any(line.startswith("out.bias ") and line.endswith(" an output of the network") for line in summary)
    assert summary[-2].startswith("proved on inputs of (2, ")
    assert summary[-1].startswith("not on other sizes in place of")
    assert len(summary) == 14 and max(map(len, summary)) < 120
    assert repr(match(spec, *modules[:2])).startswith("Matching(inner product ")
    assert repr(match(spec, modules[:2], modules[2:])).startswith("Matching(batch (2,), on average inner product ")
    assert repr(merge(spec, modules)).startswith("Merge(4 models -> Chain; 2 rounds, ")
    assert repr(merge(spec, stack([stacked(modules)] * 2))).startswith("Merge(batch (2,), 4 models -> weights; ")
    assert repr(Permutation.identity(spec, (3,))) == "Permutation(3 groups, 30 units, batch (3,))"


def test_a_spec_without_groups_is_merged_and_one_without_entries_is_refused():
    linear, x = [nn.Linear(3, 2), nn.Linear(3, 2)], torch.ones(4, 3)
    spec = rebasin.trace(linear[0], x)
    merged = merge(spec, linear)
    torch.testing.assert_close(merged.model.weight, (linear[0].weight + linear[1].weight) / 2)
    assert repr(merged) == "Merge(models as they are -> Linear; 1 round, 1 sweep, 1 stage)"
    for slots in (lambda: rebasin.Slots.of_permutation(merged.permutation), lambda: rebasin.Slots.apart(spec, 2)):
        with pytest.raises(ValueError, match="no group of units that can be matched: spec.pinned says why"):
            slots()
    nothing, relu = rebasin.trace(nn.ReLU(), x), nn.ReLU()
    for call in (
        lambda: merge(nothing, [relu, relu]),
        lambda: match(nothing, relu, relu),
        lambda: Permutation.identity(nothing).apply(relu),
    ):
        with pytest.raises(ValueError, match="the spec has no entries, and so nothing that could be matched"):
            call()


def test_the_verbs_of_a_dict_of_tensors(modules):
    many = stacked(modules)
    assert same(take(grouped(many, 2), 1, axis=1), stacked(modules[1::2]))
    assert same(take(many, slice(1, 3)), take(many, torch.tensor([1, 2])))
    with pytest.raises(ValueError, match="'bias' is in model 1 and not in the other model"):
        stack([{"weight": torch.ones(2)}, {"weight": torch.ones(2), "bias": torch.ones(2)}])
    with pytest.raises(ValueError, match="'w': model 0 is torch.float32, model 1 is torch.float64"):
        stack([{"w": torch.ones(2)}, {"w": torch.ones(2).double()}])
    with pytest.raises(ValueError, match=r"'w': a has shape \(2,\), b has \(3,\)"):
        rebasin.interpolate({"w": torch.ones(2)}, {"w": torch.ones(3)}, 0.5)


def test_no_progress_is_drawn_unless_it_is_asked_for(tmp_path, monkeypatch, capfd):
    def steps():
        with track(2, "some steps", "step") as bar:
            bar.update(2)

    monkeypatch.delenv("REBASIN_PROGRESS")
    steps()
    assert capfd.readouterr() == ("", "")
    rebasin.show_progress()
    try:
        steps()
        assert "some steps" in capfd.readouterr().err
        monkeypatch.setenv("REBASIN_PROGRESS", str(tmp_path / "bars"))
        steps()
        assert capfd.readouterr().err == "" and "some steps" in (tmp_path / "bars").read_text()
    finally:
        rebasin.show_progress(False)
    steps()
    assert (tmp_path / "bars").read_text().count("some steps") > 1, "the file is drawn in whatever the switch says"


def test_the_package_tells_its_version_and_that_it_is_typed_and_no_name_is_a_module_and_a_function():
    assert rebasin.__version__[0].isdigit()
    assert (Path(rebasin.__file__).parent / "py.typed").exists()
    for name in rebasin.__all__:
        assert hasattr(rebasin, name) and importlib.util.find_spec(f"rebasin.{name}") is None
