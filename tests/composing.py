"""The kinds of network that robustness is compared on, composed as the notebooks compose them."""

from lab.controls import after_repair, check_comparison, ensembles, one_per_block, penalised, stopped_early
from lab.merges import merge_all, unmerged
from lab.networks import build
from lab.training.train import train
from rebasin.tracing import trace


def compared(data, networks, sizes, penalties, penalised_models, repair_images=100):
    """Every group: merges, the same after REPAIR, ensembles, networks stopped early, and networks with a penalty."""
    check_comparison(networks)
    model = build("mlp", data, networks.recipe.width).eval()
    spec = trace(model, data.example)
    leaves = train(networks.recipe, data, networks.models, networks.epochs, "cpu", networks.chunk).last
    merged = merge_all(spec, leaves, sizes, networks.recipe.seed, "cpu")
    groups = [one_per_block(nodes, model) for nodes in [unmerged(spec, leaves), *merged]]
    hierarchy = [group for group in groups if group.algorithm == "hierarchy"]
    inputs = data.train.sample(repair_images).pixels
    for nodes in merged:
        if nodes.algorithm != "mean":
            groups.append(after_repair(nodes, model, spec, leaves, inputs, "cpu"))
    groups.append(ensembles(model, leaves))
    groups += stopped_early(hierarchy, data, networks, "cpu")
    return groups + penalised(model, data, networks, penalties, penalised_models, "cpu")
