"""What tracing finds in every architecture family of torchvision, and what it costs beside torch.export alone.

``python benchmarks/tracing.py`` prints a line for each and keeps them in benchmarks/tracing.json. Exporting the graph
is the floor: nothing can be followed before. A weight counts as moving if a group lies along one of its axes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

import torch
import torchvision
from torch import nn

from benchmarks.turns import keep
from rebasin.graph import export
from rebasin.tracing import trace

# The side of the images; 64 where the architecture takes any.
SIDES = {
    "resnet18": 64,
    "resnet50": 64,
    "vgg11_bn": 64,
    "vgg16_bn": 64,
    "densenet121": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "efficientnet_b0": 64,
    "convnext_tiny": 64,
    "vit_b_16": 224,
    "swin_t": 64,
    "regnet_y_400mf": 64,
    "shufflenet_v2_x1_0": 64,
    "googlenet": 64,
    "inception_v3": 128,
    "squeezenet1_0": 64,
    "mnasnet0_5": 64,
    "maxvit_t": 224,
}


def main() -> None:
    table = {
        "what": "rebasin.trace on networks as they are initialised, one example each",
        "rows": [traced(*network) for network in networks()],
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
        "threads": torch.get_num_threads(),
    }
    keep(__file__, table)


def networks() -> Iterator[tuple[str, nn.Module, torch.Tensor]]:
    """Each network by its name, with an example of its input."""
    for name, side in SIDES.items():
        options = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
        model = getattr(torchvision.models, name)(weights=None, **options)
        yield f"torchvision {name}", model.eval(), torch.randn(1, 3, side, side)
    layer = nn.TransformerEncoderLayer(256, 8, 1024, batch_first=True)
    yield "torch TransformerEncoder, 6 layers", nn.TransformerEncoder(layer, 6).eval(), torch.randn(2, 16, 256)


def traced(name: str, model: nn.Module, example: torch.Tensor) -> dict:
    """One row: the groups of a model, what moves and what stays, and the time."""
    export(nn.Linear(2, 2), (torch.randn(1, 2),))  # what torch loads at its first export is no cost of this model
    started = time.monotonic()
    export(model, (example,))
    exporting = time.monotonic() - started
    started = time.monotonic()
    spec = trace(model, example)
    seconds = time.monotonic() - started
    sizes = {key: t.numel() for key, t in model.state_dict().items() if t.is_floating_point()}
    why: Counter[str] = Counter()
    for key, reason in spec.pinned.items():
        why[reason] += sizes.get(key, 0)
    whole = sum(sizes.values())
    within = sum(spec.sizes[outer] for outer in spec.inside.values())
    row = {
        "network": name,
        "numbers": whole,
        "image": list(example.shape),
        "groups": len(spec.families) + within,
        "groups_of_blocks": len(set(spec.inside.values())),
        "groups_within_blocks": within,
        "share_moving": sum(size for key, size in sizes.items() if spec.parts[key]) / whole,
        "share_pinned_by_reason": {reason: count / whole for reason, count in why.most_common() if count},
        "export_seconds": round(exporting, 2),
        "trace_seconds": round(seconds, 2),
    }
    print(f"{name:36} {row['groups']:5} groups, {row['share_moving']:8.3%} moves, {seconds:6.1f} s ({exporting:.1f} s)")
    return row


if __name__ == "__main__":
    main()
