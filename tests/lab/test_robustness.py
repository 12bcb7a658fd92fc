"""The tables say what the attacks and perturbations left of each node, on its own images, and nothing is done twice."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pyautoattack
import pytest
import torch
from composing import compared
from torch.func import functional_call

from lab.bookkeeping.vocabulary import KIND
from lab.controls import Group
from lab.images import Split
from lab.measures import attacks, perturbations, robustness
from lab.measures import autoattack as reference
from lab.measures.attacks import LOSSES, Attack, fgsm, perturb, surviving
from lab.measures.autoattack import autoattack, reference_accuracy
from lab.measures.perturbations import PERTURBATIONS, perturbed
from lab.measures.robustness import (
    DIVISOR,
    MERGED,
    attack_checks,
    clean_accuracy,
    perturbed_accuracy,
    robust_accuracy,
    transfer_accuracy,
)
from lab.networks import build
from lab.outputs import evaluate
from lab.training.plan import Planned
from lab.training.recipe import Recipe
from lab.training.train import train

RECIPE = Recipe(width=16, batch_size=64, learning_rate=3e-3, initial="lecun_normal")
EPOCHS, MODELS, OUTSIDE = 3, 16, 2
EPSILONS = [0.0, 4.0, 8.0, 24.0]  # of the images that are classified correctly, all to nearly none survive
STEPS = 4
IMAGES, FEWER = 61, 43  # neither fills its last byte


@pytest.fixture(scope="module")
def groups(digits):
    """Two nodes of each kind, of one or two leaves; an ensemble of eight; and two models with a penalty."""
    networks = Planned("networks", "digits", RECIPE, (EPOCHS,), MODELS, held_out=200, chunk=MODELS)
    found = compared(digits, networks, {"hierarchy": [2], "mean": [2]}, {"l2": [0.001]}, 2)
    return [group for group in found if group.algorithm != "early_stopped"]


@pytest.fixture(scope="module")
def outside(digits, groups):
    """Models that are no leaves."""
    trained = train(RECIPE, digits, MODELS + OUTSIDE, (EPOCHS,), "cpu", MODELS)
    return {key: tensor[-1, MODELS:] for key, tensor in trained.weights.items()}


@pytest.fixture(scope="module")
def split(digits):
    return digits.test.sample(IMAGES)


@pytest.fixture(scope="module")
def splits(groups, digits, split):
    """Fewer images for the hierarchy after REPAIR and the penalised."""
    fewer = digits.test.sample(FEWER)
    return [fewer if group.kind[:2] in (("hierarchy", "repair"), ("l2", "none")) else split for group in groups]


@pytest.fixture(scope="module")
def attacked(groups, splits):
    return robust_accuracy(groups, splits, "linf", EPSILONS, LOSSES, STEPS, 1, 0, "cpu", 8)


@pytest.fixture(scope="module")
def transfer(groups, outside, split):
    return transfer_accuracy(groups, outside, split, [0.0, 8.0], STEPS, 0, "cpu", 8)


@pytest.fixture(scope="module")
def checks(groups, outside, digits):
    chosen = [group for group in groups if group.kind[:2] in (("unmerged", "none"), ("hierarchy", "none"))]
    return attack_checks(chosen, outside, digits.test.sample(FEWER), 8.0, LOSSES, STEPS, 0, "cpu")


@pytest.fixture(scope="module")
def harmed(groups, splits):
    return perturbed_accuracy(groups, splits, 0, "cpu", 8)


def accuracy(group, split):
    return evaluate(group.model, group.weights, split, "cpu").correct.double().mean(1)


def pixels_of(split):
    return split.images.float() / 255


def rows_of(table, group, node=None, **values):
    """The rows about a group, or one of its nodes, with these values."""
    values |= dict(zip(KIND, group.kind, strict=True))
    values |= {} if node is None else {"node": node}
    for column, value in values.items():
        table = table[table[column] == value]
    return table


def value_of(table, group, node, **values):
    return float(rows_of(table, group, node, **values)["value"].item())


def named(groups, algorithm):
    return next(group for group in groups if group.kind[:2] == (algorithm, "none"))


def one_node(group, position):
    """A group of this node alone."""
    weights = {key: tensor[position : position + 1] for key, tensor in group.weights.items()}
    return replace(group, weights=weights, nodes=group.nodes[position : position + 1])


def every_node(groups):
    return [(group, position, node) for group in groups for position, node in enumerate(group.nodes)]


def refuse(*args, **kwargs):
    raise AssertionError("this was done again")


def test_each_node_has_one_row_for_each_attack_loss_and_epsilon(groups, attacked):
    table, images = attacked
    attacks = [("fgsm", loss) for loss in LOSSES] + [("pgd", loss) for loss in LOSSES] + [("worst", "all")]
    for group, _, node in every_node(groups):
        own = rows_of(table, group, node)
        expected = [(attack, loss, epsilon) for attack, loss in attacks for epsilon in EPSILONS]
        assert sorted(zip(own.attack, own.loss, own.epsilon, strict=True)) == sorted(expected)
        assert sorted(rows_of(images, group, node).epsilon) == EPSILONS
    nodes = len(every_node(groups))
    assert (len(table), len(images)) == (nodes * 5 * len(EPSILONS), nodes * len(EPSILONS))
    assert set(table.norm) == set(images.norm) == {"linf"}


def test_the_worst_case_is_what_survives_all_attacks(groups, splits, attacked):
    table, images = attacked
    for group, split in zip(groups, splits, strict=True):
        if group.algorithm not in ("hierarchy", "ensemble"):
            continue
        left = torch.ones(len(group.nodes), len(EPSILONS), len(split.labels), dtype=torch.bool)
        for attack in [attack for loss in LOSSES for attack in (fgsm(loss), Attack(loss, steps=STEPS))]:
            radii = [epsilon / 255 for epsilon in EPSILONS]
            left &= surviving(group.model, group.weights, pixels_of(split), split.labels, radii, attack, 0, "cpu", 8)
        for position, node in enumerate(group.nodes):
            for at, epsilon in enumerate(EPSILONS):
                share = float(left[position, at].double().mean())
                assert value_of(table, group, node, attack="worst", epsilon=epsilon) == share
                row = rows_of(images, group, node, epsilon=epsilon).iloc[0]
                bits = np.unpackbits(np.frombuffer(row.correct, np.uint8), count=row.images)
                assert bits.tolist() == left[position, at].int().tolist()


def test_the_worst_case_is_no_better_than_any_attack_and_falls_with_epsilon(attacked):
    table, _ = attacked
    index = [*KIND, "node", "epsilon"]
    worst = table[table.attack == "worst"].set_index(index)["value"]
    for _, single in table[table.attack != "worst"].groupby(["attack", "loss"]):
        assert (worst <= single.set_index(index)["value"]).all()
    curves = worst.unstack("epsilon")[EPSILONS]
    assert (curves.diff(axis=1).iloc[:, 1:] <= 0).all(axis=None)
    assert (curves[0.0] > curves[24.0]).all(), "the attacks do harm"


def test_without_an_attack_the_accuracy_is_that_of_evaluation(groups, splits, attacked):
    table, _ = attacked
    for group, split in zip(groups, splits, strict=True):
        for node, share in zip(group.nodes, accuracy(group, split).tolist(), strict=True):
            assert set(rows_of(table, group, node, epsilon=0.0)["value"]) == {share}


def test_the_packed_images_are_as_many_as_the_table_says(groups, splits, attacked):
    table, images = attacked
    for group, split in zip(groups, splits, strict=True):
        for node in group.nodes:
            for row in rows_of(images, group, node).itertuples():
                assert row.images == len(split.labels)
                bits = np.unpackbits(np.frombuffer(row.correct, np.uint8))
                assert len(bits) < row.images + 8 and not bits[row.images :].any()
                share = value_of(table, group, node, attack="worst", epsilon=row.epsilon)
                assert bits.sum() / row.images == pytest.approx(share, rel=1e-12)


def test_what_was_attacked_before_is_not_attacked_again(groups, splits, attacked, cache, monkeypatch):
    monkeypatch.setenv("REBASIN_CACHE", cache)
    monkeypatch.setattr(attacks, "surviving", refuse)
    again = robust_accuracy(groups, splits, "linf", EPSILONS, LOSSES, STEPS, 1, 0, "cpu", 8)
    for found, first in zip(again, attacked, strict=True):
        pd.testing.assert_frame_equal(found, first)


@pytest.mark.parametrize(
    "change",
    [{"norm": "l2"}, {"epsilons": [0.0, 4.0, 8.0]}, {"steps": 5}, {"restarts": 2}, {"seed": 1}],
    ids=lambda change: next(iter(change)),
)
def test_another_attack_is_made_anew(groups, split, attacked, cache, monkeypatch, change):
    monkeypatch.setenv("REBASIN_CACHE", cache)
    setting = {"norm": "linf", "epsilons": EPSILONS, "losses": LOSSES, "steps": STEPS, "restarts": 1, "seed": 0}
    group = named(groups, "hierarchy")
    first = robust_accuracy([group], [split], **setting, device="cpu", chunk=8)
    pd.testing.assert_frame_equal(first[0], rows_of(attacked[0], group).reset_index(drop=True))
    monkeypatch.setattr(attacks, "surviving", refuse)
    with pytest.raises(AssertionError, match="this was done again"):
        robust_accuracy([group], [split], **setting | change, device="cpu", chunk=8)


def test_other_images_and_other_nodes_are_attacked_anew(groups, digits, split, attacked, cache, monkeypatch):
    monkeypatch.setenv("REBASIN_CACHE", cache)
    monkeypatch.setattr(attacks, "surviving", refuse)
    group = named(groups, "hierarchy")
    for other, images in ((group, digits.test.sample(IMAGES, seed=1)), (one_node(group, 1), split)):
        with pytest.raises(AssertionError, match="this was done again"):
            robust_accuracy([other], [images], "linf", EPSILONS, LOSSES, STEPS, 1, 0, "cpu", 8)


def test_epsilons_are_not_mixed_up_in_the_cache(groups, split, attacked, cache, monkeypatch, tmp_path):
    group, others = named(groups, "hierarchy"), [0.0, 8.0, 16.0, 32.0]
    found = []
    for folder in (cache, str(tmp_path / "empty")):
        monkeypatch.setenv("REBASIN_CACHE", folder)
        found.append(robust_accuracy([group], [split], "linf", others, LOSSES, STEPS, 1, 0, "cpu", 8)[0])
    pd.testing.assert_frame_equal(*found)
    before = rows_of(attacked[0], group)["value"].tolist()
    assert found[0]["value"].tolist() != before, "the epsilons make a difference"


def test_a_split_for_each_group_is_asked_for(groups, split):
    with pytest.raises(ValueError, match="shorter"):
        robust_accuracy(groups[:2], [split], "linf", EPSILONS, LOSSES, STEPS, 1, 0, "cpu", 8)


def test_transfer_comes_from_outside_for_all_and_from_its_own_leaf_for_what_is_merged(groups, transfer):
    for group, _, node in every_node(groups):
        sources = ["outside", "own leaf"] if group.algorithm in MERGED else ["outside"]
        own = rows_of(transfer, group, node)
        expected = [(source, epsilon) for source in sources for epsilon in (0.0, 8.0)]
        assert sorted(zip(own.source, own.epsilon, strict=True)) == sorted(expected)


def test_transfer_without_a_change_leaves_the_clean_accuracy(groups, split, transfer):
    for group in groups:
        for node, share in zip(group.nodes, accuracy(group, split).tolist(), strict=True):
            found = rows_of(transfer, group, node, epsilon=0.0)["value"]
            # The mean over several models outside rounds.
            assert found.tolist() == pytest.approx([share] * len(found), rel=1e-12)


def test_transferred_images_are_those_attacked_on_the_models_outside_or_the_first_leaf(
    groups, outside, split, transfer, digits, cache, monkeypatch
):
    monkeypatch.setenv("REBASIN_CACHE", cache)
    leaves = train(RECIPE, digits, MODELS, (EPOCHS,), "cpu", MODELS).weights
    unmerged = named(groups, "unmerged")
    group, position = named(groups, "hierarchy"), 1
    assert group.nodes[position] == 4, "of leaves 8 and 9"
    one = {key: tensor[position] for key, tensor in group.weights.items()}

    def left(source):
        made = perturb(unmerged.model, source, pixels_of(split), split.labels, 8 / 255, Attack(steps=STEPS), 0, "cpu")
        right = [functional_call(group.model, one, (images,)).argmax(-1) == split.labels for images in made]
        return float(torch.stack(right).double().mean())

    assert value_of(transfer, group, 4, source="outside", epsilon=8.0) == pytest.approx(left(outside), rel=1e-12)
    first = {key: tensor[-1, 8:9] for key, tensor in leaves.items()}
    assert value_of(transfer, group, 4, source="own leaf", epsilon=8.0) == pytest.approx(left(first), rel=1e-12)


def test_an_attack_on_the_model_itself_is_no_weaker_than_one_that_transfers(groups, splits, attacked, transfer):
    for group, split in zip(groups, splits, strict=True):
        if len(split.labels) != IMAGES:
            continue
        for node in group.nodes:
            white = value_of(attacked[0], group, node, attack="worst", epsilon=8.0)
            assert (white <= rows_of(transfer, group, node, epsilon=8.0)["value"]).all()


def test_every_check_of_the_attacks_is_made_for_each_loss(groups, checks):
    settings = [("steps", many) for many in (1, 5, 10, 20, 50, 100)] + [("everything", 255.0)]
    settings += [(check, STEPS) for check in ("white box", "transfer")] + [("divided logits", DIVISOR)]
    settings += [("ball", 8.0), ("pixels", 0.0)]
    expected = [("clean", "", 0.0)] + [(check, loss, setting) for check, setting in settings for loss in LOSSES]
    chosen = [named(groups, algorithm) for algorithm in ("unmerged", "hierarchy")]
    assert len(checks) == 2 * len(expected)
    for group in chosen:
        own = rows_of(checks, group, group.nodes[0])
        assert sorted(zip(own.check, own.loss, own.setting, strict=True)) == sorted(expected)


def test_attacked_images_stay_in_the_ball_and_are_images(checks):
    change = checks[checks.check == "ball"]["value"]
    # Pixels of order 1 in float32, times 255.
    assert change.between(7.9, 8 + 1e-4).all()
    assert (checks[checks.check == "pixels"]["value"] == 0).all()


def test_checks_are_measured_on_the_first_node(groups, digits, checks):
    few = digits.test.sample(FEWER)
    for algorithm in ("unmerged", "hierarchy"):
        group = named(groups, algorithm)
        assert value_of(checks, group, group.nodes[0], check="clean") == float(accuracy(group, few)[0])
        for loss in LOSSES:
            one = one_node(group, 0)
            attack = Attack(loss, steps=STEPS)
            left = surviving(one.model, one.weights, pixels_of(few), few.labels, [8 / 255], attack, 0, "cpu")
            assert value_of(checks, one, one.nodes[0], check="white box", loss=loss) == float(left.double().mean())


def test_the_scale_of_the_logits_is_no_matter_to_the_margin(checks):
    by_check = checks[checks.loss == "margin"].set_index([*KIND, "check"])["value"]
    smaller, white = (by_check.xs(check, level="check") for check in ("divided logits", "white box"))
    # A division by 16 does not round.
    pd.testing.assert_series_equal(smaller, white)


@pytest.mark.parametrize("architecture", ["resnet20_bn", "vgg16_ln", "vit"])
def test_every_architecture_is_attacked_and_its_logits_divided(architecture, digits, tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_CACHE", str(tmp_path))
    model = build(architecture, digits, 4)
    weights = {key: tensor.unsqueeze(0) for key, tensor in model.state_dict().items()}
    group = Group("unmerged", 1, 0.0, (0,), model, weights, torch.full((1,), torch.nan))
    few = digits.test.sample(3)
    divided = robustness.Divided(model, 16).eval()
    assert torch.equal(divided(pixels_of(few)), model(pixels_of(few)) / 16)
    table, _ = robust_accuracy([group], [few], "linf", [0.0, 8.0], ["margin"], 1, 1, 0, "cpu", 1)
    assert len(table) == 3 * 2 and (table["images"] == 3).all()
    assert value_of(table, group, 0, attack="worst", epsilon=0.0) == float(accuracy(group, few)[0])


def test_more_room_breaks_more_and_another_model_s_attack_less(checks):
    by_check = checks.set_index([*KIND, "loss", "check"])["value"]
    white = by_check.xs("white box", level="check")
    assert (by_check.xs("everything", level="check") <= white).all()
    assert (white <= by_check.xs("transfer", level="check")).all()
    clean = checks[checks.check == "clean"].set_index(list(KIND))["value"]
    before = clean.reindex(white.index.droplevel("loss")).to_numpy()
    assert (white <= before).all() and (white < before).any()


def test_severity_0_is_the_clean_accuracy(groups, splits, harmed):
    table, _ = harmed
    for group, split in zip(groups, splits, strict=True):
        for node, share in zip(group.nodes, accuracy(group, split).tolist(), strict=True):
            assert value_of(table, group, node, severity=0, perturbation="clean") == share


def test_every_perturbation_is_told_at_every_severity(groups, harmed):
    expected = [("clean", 0)] + [(kind, severity) for kind in PERTURBATIONS for severity in range(1, 6)]
    table, images = harmed
    for group, _, node in every_node(groups):
        own = rows_of(table, group, node)
        assert sorted(zip(own.perturbation, own.severity, strict=True)) == sorted(expected)
        assert rows_of(images, group, node).out_of.tolist() == [len(expected) - 1]
    assert (len(table), len(images)) == (len(every_node(groups)) * len(expected), len(every_node(groups)))


def test_perturbed_images_are_counted_right(groups, splits, harmed):
    table, images = harmed
    for group, split in zip(groups, splits, strict=True):
        if group.algorithm != "hierarchy":
            continue
        counts = torch.zeros(len(group.nodes), len(split.labels), dtype=torch.int64)
        for kind in PERTURBATIONS:
            for severity in range(1, 6):
                correct = evaluate(group.model, group.weights, perturbed(split, kind, severity, 0), "cpu").correct
                counts += correct
                found = rows_of(table, group, perturbation=kind, severity=severity)["value"]
                assert found.tolist() == correct.double().mean(1).tolist()
        for node, count in zip(group.nodes, counts, strict=True):
            row = rows_of(images, group, node).iloc[0]
            assert row.images == len(split.labels)
            assert np.frombuffer(row.correct, np.uint8).tolist() == count.tolist()


def test_what_was_perturbed_before_is_not_perturbed_again(groups, splits, harmed, cache, monkeypatch):
    monkeypatch.setenv("REBASIN_CACHE", cache)
    for name in ("evaluate", "perturbed"):
        monkeypatch.setattr(perturbations, name, refuse)
    for found, first in zip(perturbed_accuracy(groups, splits, 0, "cpu", 8), harmed, strict=True):
        pd.testing.assert_frame_equal(found, first)
    with pytest.raises(AssertionError, match="this was done again"):
        perturbed_accuracy(groups[:1], splits[:1], 1, "cpu", 8)


def test_clean_accuracy_is_that_of_evaluation_on_each_split(groups, digits):
    table = clean_accuracy(groups, {"held_out": digits.held_out, "test": digits.test}, "cpu", 8)
    assert len(table) == 2 * len(every_node(groups))
    for group, position, node in every_node(groups):
        for name, split in (("held_out", digits.held_out), ("test", digits.test)):
            share = float(accuracy(one_node(group, position), split)[0])
            assert value_of(table, group, node, split=name) == share


REFERENCE_EPSILON = 12.0


class Hurried(pyautoattack.AutoAttack):
    """The standard suite with both kinds of APGD in full, but few steps of the two attacks that take the longest."""

    run = []

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.fab.n_iter, self.square.n_queries = 3, 20
        self.run.append((self.norm, list(self.attacks_to_run)))


@pytest.fixture(scope="module")
def referred(groups, digits):
    """Images, and which of them AutoAttack leaves the second leaf."""
    group, few = one_node(named(groups, "unmerged"), 1), digits.test.sample(12)
    radius = REFERENCE_EPSILON / 255
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyautoattack, "AutoAttack", Hurried)
        return few, autoattack(group.model, group.weights, pixels_of(few), few.labels, radius, 0, "cpu")


def test_autoattack_leaves_about_what_the_own_attacks_leave(groups, referred):
    few, left = referred
    assert Hurried.run == [("Linf", ["apgd-ce", "apgd-t", "fab-t", "square"])]
    group = one_node(named(groups, "unmerged"), 1)
    correct = evaluate(group.model, group.weights, few, "cpu").correct[0]
    assert left.dtype == torch.bool and left.shape == (12,)
    assert not (left & ~correct).any(), "what is misclassified is lost"
    own = torch.ones(12, dtype=torch.bool)
    for loss in LOSSES:
        attack = Attack(loss, steps=50)
        found = surviving(
            group.model, group.weights, pixels_of(few), few.labels, [REFERENCE_EPSILON / 255], attack, 0, "cpu"
        )
        own &= found[0, 0]
    # One image may lie at the very edge of the ball, where one attack finds the way out and another does not.
    assert (left & ~own).sum() <= 1
    assert (own & ~left).sum() <= 1
    assert 0 < left.sum() < correct.sum(), "it is an attack, and some images survive it"


def test_the_reference_table_puts_autoattack_beside_the_clean_and_the_own(groups, referred, monkeypatch):
    asked = []

    def stub(model, weights, images, labels, epsilon, seed, device):
        asked.append((weights, images, epsilon))
        return torch.arange(len(labels)) < len(asked)

    monkeypatch.setattr(reference, "autoattack", stub)
    few, _ = referred
    chosen = [named(groups, "unmerged"), one_node(named(groups, "hierarchy"), 0)]
    table = reference_accuracy(chosen, few, REFERENCE_EPSILON, 2, LOSSES, STEPS, 0, "cpu")
    assert len(table) == 3 * len(asked) == 3 * 3
    for number, (group, position, node) in enumerate(every_node(chosen)):
        weights, images, epsilon = asked[number]
        one = one_node(group, position)
        assert all(torch.equal(weights[key], tensor) for key, tensor in one.weights.items())
        assert torch.equal(images, pixels_of(few)) and epsilon == pytest.approx(REFERENCE_EPSILON / 255)
        assert value_of(table, group, node, attack="clean") == float(accuracy(one, few)[0])
        assert value_of(table, group, node, attack="autoattack") == pytest.approx((number + 1) / 12)
        worst, _ = robust_accuracy([one], [few], "linf", [REFERENCE_EPSILON], LOSSES, STEPS, 1, 0, "cpu", 1)
        own = value_of(table, group, node, attack="own")
        assert own == value_of(worst, group, node, attack="worst")


class Harmless:
    """In place of AutoAttack: it counts how often it is asked, and changes nothing."""

    asked = 0

    def __init__(self, model, **options):
        pass

    def run_standard_evaluation(self, images, labels):
        Harmless.asked += 1
        return images, labels


def test_what_autoattack_left_is_not_attacked_again(groups, referred, monkeypatch):
    monkeypatch.setattr(pyautoattack, "AutoAttack", Harmless)
    few, _ = referred
    setting = groups[:1], few, REFERENCE_EPSILON, 1, LOSSES, STEPS, 0, "cpu"
    table = reference_accuracy(*setting)
    assert Harmless.asked == 1
    clean, left = (table.loc[table["attack"] == name, "value"].tolist() for name in ("clean", "autoattack"))
    assert clean == left
    pd.testing.assert_frame_equal(reference_accuracy(*setting), table)
    assert Harmless.asked == 1
    reference_accuracy(groups[:1], few, REFERENCE_EPSILON + 1, 1, LOSSES, STEPS, 0, "cpu")
    assert Harmless.asked == 2


def test_no_more_nodes_are_referred_than_asked_for(groups, referred, monkeypatch):
    monkeypatch.setattr(reference, "autoattack", lambda model, weights, images, labels, *rest: labels >= 0)
    few = Split(referred[0].images[:3], referred[0].labels[:3])
    table = reference_accuracy(groups[:2], few, 4.0, 1, ["margin"], 1, 0, "cpu")
    assert sorted(set(zip(table.algorithm, table.node, strict=True))) == [("hierarchy", 0), ("unmerged", 0)]
    assert len(table) == 6
