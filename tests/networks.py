"""Small networks of every kind that the algorithms must take: what stands for the large ones in tests."""

import torch
from torch import nn

from rebasin.spec import PermutationSpec


class Branches(nn.Module):
    """Convolutions with batch norms, a residual sum, a concatenation, a grouped convolution, and a flattening."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.residual, self.norm2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.side, self.grouped = nn.Conv2d(6, 4, 1), nn.Conv2d(10, 15, 3, padding=1, groups=5)
        self.out = nn.Linear(15 * 4, 3)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = x + self.norm2(self.residual(x)).relu()
        x = torch.cat([x, self.side(x).relu()], 1)
        return self.out(nn.functional.max_pool2d(self.grouped(x).relu(), 2).flatten(1))


class Attention(nn.Module):
    """Patches, one transformer layer of three heads, a mean over tokens."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(2, 12, 2, 2)
        self.layer = nn.TransformerEncoderLayer(12, 3, 10, dropout=0.0, batch_first=True, norm_first=True)
        self.norm, self.out = nn.LayerNorm(12), nn.Linear(12, 3)

    def forward(self, x):
        return self.out(self.norm(self.layer(self.patches(x).flatten(2).transpose(1, 2))).mean(1))


class Reused(nn.Module):
    """One square matrix applied twice, so that its group lies on both of its axes."""

    def __init__(self):
        super().__init__()
        self.into, self.again, self.out = nn.Linear(32, 9), nn.Linear(9, 9), nn.Linear(9, 3)

    def forward(self, x):
        x = self.into(x.flatten(1)).relu()
        return self.out(self.again(self.again(x).relu()).relu())


class Chain(nn.Sequential):
    """Three hidden layers."""

    def __init__(self):
        layers = [nn.Linear(i, o) for i, o in ((32, 12), (12, 10), (10, 8), (8, 3))]
        super().__init__(nn.Flatten(), *(part for layer in layers[:-1] for part in (layer, nn.ReLU())), layers[-1])


NETWORKS = {network.__name__.lower(): network for network in (Chain, Branches, Attention, Reused)}


def images(count, seed=0):
    """Random inputs that each of the networks takes, (count, 2, 4, 4) in float64."""
    return torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn(model, *batch, seed=0):
    """Random float64 weights (*batch, ...) as training might leave them: norm statistics too, variances positive."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key, tensor in model.state_dict().items():
        shape = (*batch, *tensor.shape)
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        if not tensor.is_floating_point():
            weights[key] = tensor.expand(shape).clone()
        elif tensor.ndim < 2:
            weights[key] = 0.5 + values.abs() if "var" in key or "norm" in key else values / 2
        else:
            weights[key] = values * (2 / tensor[0].numel()) ** 0.5
    return weights


def chain_spec(model):
    """The spec of a chain of linear layers, written down by hand: a group for the rows of each layer but the last."""
    axes, below = {}, None
    layers = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    for position, (name, layer) in enumerate(layers, 1):
        above = name if position < len(layers) else None
        axes[f"{name}.weight"] = (above, below)
        if layer.bias is not None:
            axes[f"{name}.bias"] = (above,)
        below = above
    return PermutationSpec.from_axes(model.state_dict(), axes)
