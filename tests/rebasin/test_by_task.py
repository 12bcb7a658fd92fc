"""A merge of models of different tasks is mended for each task: by the statistics of that task's own model."""

import pytest
import torch
from networks import Branches, Chain, drawn, images
from torch.func import functional_call

from rebasin import repair, reset_norms
from rebasin.merging.by_task import repair_by_task

# Sums of some hundred float64 products, each layer's error carried through the next.
ROUNDING = {"rtol": 1e-8, "atol": 1e-8}
TASKS = [images(40, seed=1), 2 * images(30, seed=2) + 1]


def entry(weights, *position):
    return {key: tensor[position] for key, tensor in weights.items()}


def average(parents, axis=0):
    return {key: t.mean(axis) if t.is_floating_point() else t.select(axis, 0) for key, t in parents.items()}


def hidden(model, weights, x, layers):
    """Mean and deviation over inputs and places of what each unit of these layers gives."""
    seen = []

    def keep(module, args, value):
        rows = value.movedim(1, -1).flatten(0, -2)
        seen.append(torch.stack([rows.mean(0), rows.std(0)]))

    hooks = [model.get_submodule(layer).register_forward_hook(keep) for layer in layers]
    with torch.no_grad():
        functional_call(model, weights, (x,))
    for hook in hooks:
        hook.remove()
    return torch.cat(seen, 1)


@pytest.mark.parametrize(
    ("network", "layers"), [(Chain, ["1", "3", "5"]), (Branches, ["norm", "norm2", "side", "grouped"])]
)
def test_each_unit_has_on_each_task_the_mean_and_deviation_that_it_has_in_the_model_of_the_task(network, layers):
    model = network().double().eval()
    parents = drawn(model, 2, seed=1)
    merged = average(parents)
    mended = repair_by_task(model, merged, parents, TASKS)
    joint = repair(model, merged, parents, torch.cat(TASKS))
    for task, x in enumerate(TASKS):
        goal = hidden(model, entry(parents, task), x, layers)
        torch.testing.assert_close(hidden(model, mended[task], x, layers), goal, **ROUNDING)
        for other in (merged, joint, mended[1 - task]):
            assert not torch.allclose(hidden(model, other, x, layers), goal, rtol=0.05, atol=0.05)


def test_running_statistics_are_those_of_the_task():
    model = Branches().double().eval()
    parents = drawn(model, 2, seed=1)
    merged = average(parents)
    for task, mended in enumerate(repair_by_task(model, merged, parents, TASKS)):
        own = reset_norms(model, merged, TASKS[task])
        assert torch.equal(mended["norm.running_mean"], own["norm.running_mean"])
        assert torch.equal(mended["norm.running_var"], own["norm.running_var"])


def test_a_merge_of_identical_parents_is_theirs_on_every_task():
    model = Chain().double().eval()
    parent = drawn(model, seed=3)
    for mended in repair_by_task(model, parent, [parent, parent], TASKS):
        for key, tensor in parent.items():
            torch.testing.assert_close(mended[key], tensor, **ROUNDING)


def test_a_batch_of_merges_and_modules_are_mended_as_one_by_one():
    model = Chain().double().eval()
    parents = drawn(model, 3, 2, seed=4)
    together = repair_by_task(model, average(parents, 1), parents, TASKS)
    modules = []
    for i in range(2):
        module = Chain().double()
        module.load_state_dict(entry(parents, 1, i))
        modules.append(module)
    alone = repair_by_task(model, average(entry(parents, 1)), modules, TASKS)
    middle = Chain().double()
    middle.load_state_dict(average(entry(parents, 1)))
    as_module = repair_by_task(model, middle, modules, TASKS)
    assert len(together) == len(alone) == len(as_module) == 2
    for task in range(2):
        for key, tensor in alone[task].items():
            torch.testing.assert_close(together[task][key][1], tensor, **ROUNDING)
            torch.testing.assert_close(as_module[task].state_dict()[key], tensor, **ROUNDING)
    assert all(torch.equal(tensor, average(entry(parents, 1))[key]) for key, tensor in middle.state_dict().items())


def test_inputs_that_are_not_one_batch_for_each_parent_are_refused():
    model = Chain().double().eval()
    parents = drawn(model, 2, seed=1)
    with pytest.raises(TypeError, match="the inputs are a list: those of each task, in the order of the parents"):
        repair_by_task(model, average(parents), parents, TASKS[0])
    with pytest.raises(ValueError, match="2 parents have a task each: inputs of 3 are given"):
        repair_by_task(model, average(parents), parents, [*TASKS, TASKS[0]])
    with pytest.raises(ValueError, match="the parents need one leading axis more than the merge"):
        repair_by_task(model, average(parents), average(parents), TASKS)
    with pytest.raises(TypeError, match="the first argument is the model"):
        repair_by_task(average(parents), model, parents, TASKS)
    with pytest.raises(ValueError, match="REPAIR needs two inputs or more"):
        repair_by_task(model, average(parents), parents, [TASKS[0], TASKS[1][:1]])
