"""Random views of images: what they leave as it is, and that they agree with torchvision's crops and turns."""

import math

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from lab.training import augmentation
from lab.training.augmentation import augment


@pytest.fixture
def smooth():
    """Images (4, 3, 32, 32) without sharp edges inside, so that interpolations differ little."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    waves = [torch.sin(2 * x + y + k) + torch.cos(x - 3 * y + 2 * k) for k in range(12)]
    return (torch.stack(waves).reshape(4, 3, 32, 32) + 2) / 4


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def fix(monkeypatch, zoom=0.5, x=0.5, y=0.5, turn=0.5, flip=0.75):
    """Plant the draws of all images, each in [0, 1): by default no zoom, no shift, no turn and no flip."""
    drawn = torch.tensor([zoom, x, y, turn, flip])
    monkeypatch.setattr(torch, "rand", lambda rows, m, generator: drawn[:, None].expand(rows, m))


@pytest.mark.parametrize("shape", [(5, 3, 32, 32), (2, 1, 28, 28), (3, 1, 8, 8), (2, 2, 6, 10)])
def test_a_view_has_the_shape_and_kind_of_its_image(shape):
    images = torch.rand(shape, generator=seeded())
    views = augment(images, seeded(1))
    assert views.shape == images.shape and views.dtype == images.dtype
    assert views.min() >= 0 and views.max() <= 1 + 1e-6


def test_without_zoom_turn_and_flip_a_view_is_the_image(monkeypatch, smooth):
    fix(monkeypatch)
    torch.testing.assert_close(augment(smooth, seeded()), smooth, rtol=0, atol=1e-5)


def test_without_zoom_and_turn_half_of_the_views_are_mirrored(monkeypatch):
    monkeypatch.setattr(augmentation, "ZOOM", (1.0, 1.0))
    monkeypatch.setattr(augmentation, "ANGLE", 0.0)
    images = torch.rand(1000, 1, 4, 4, generator=seeded())
    views = augment(images, seeded(1))
    same, mirrored = ((views - other).abs().amax((1, 2, 3)) < 1e-5 for other in (images, images.flip(-1)))
    assert (same ^ mirrored).all()
    # Of 1000 fair flips, the share lies within five deviations of a half.
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=5 * 0.5 / 1000**0.5)


def test_views_depend_on_the_generator_alone(smooth):
    torch.manual_seed(1)
    first = augment(smooth, seeded(3))
    torch.manual_seed(2)
    assert torch.equal(augment(smooth, seeded(3)), first)
    assert not torch.equal(augment(smooth, seeded(4)), first)
    generator = seeded(3)
    assert torch.equal(augment(smooth, generator), first)
    assert not torch.equal(augment(smooth, generator), first), "the next views are new ones"
    before = torch.get_rng_state()
    augment(smooth, generator)
    assert torch.equal(torch.get_rng_state(), before)


def test_each_image_of_a_batch_has_a_view_of_its_own(smooth):
    views = augment(smooth[:1].expand(4, -1, -1, -1), seeded())
    assert all(not torch.equal(views[i], views[j]) for i in range(4) for j in range(i))


def test_beyond_the_edge_everything_is_black(monkeypatch):
    white = torch.ones(1, 1, 32, 32)
    fix(monkeypatch, zoom=1.0, x=0.5, y=0.5)  # a crop of 38.4 pixels: 3.2 of them beyond each edge
    view = augment(white, seeded())[0, 0]
    assert not view[:2].any() and not view[:, -2:].any()
    torch.testing.assert_close(view[4:-4, 4:-4], torch.ones(24, 24))
    fix(monkeypatch, turn=1.0)
    assert augment(white, seeded())[0, 0, 0, 0] == 0, "a turned image leaves the corners"
    fix(monkeypatch, zoom=0.0)
    torch.testing.assert_close(augment(white, seeded())[0, 0], white[0, 0])


@pytest.mark.parametrize("turn", [0.0, 0.2, 0.9])
def test_a_turn_is_that_of_torchvision(monkeypatch, smooth, turn):
    fix(monkeypatch, turn=turn)
    view = augment(smooth, seeded())
    degrees = math.degrees((2 * turn - 1) * augmentation.ANGLE)
    turned = tv.rotate(smooth, degrees, v2.InterpolationMode.BILINEAR)
    inside = turned.ne(0).all(1, keepdim=True) & view.ne(0).all(1, keepdim=True)
    inside = -torch.nn.functional.max_pool2d(-inside.float(), 3, 1, 1) > 0  # not the pixels at the edge
    assert inside.float().mean() > 0.6
    # Both are bilinear at the same places.
    torch.testing.assert_close(view.where(inside, 0), turned.where(inside, 0), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("x", "y"), [(0.0, 0.0), (1.0, 0.5), (0.25, 0.75)])
def test_a_zoom_is_the_crop_of_torchvision(monkeypatch, smooth, x, y):
    zoom = 0.875  # a side of 28 of the 32 pixels
    monkeypatch.setattr(augmentation, "ZOOM", (zoom, zoom))
    fix(monkeypatch, x=x, y=y)
    crop = tv.resized_crop(smooth, round(4 * y), round(4 * x), 28, 28, [32, 32], antialias=False)
    view = augment(smooth, seeded())
    # At its edge a crop knows no neighbours, and the view does.
    torch.testing.assert_close(view[..., 1:-1, 1:-1], crop[..., 1:-1, 1:-1], rtol=0, atol=1e-4)


def test_a_mirrored_view_is_the_mirror_image_of_the_view(monkeypatch, smooth):
    fix(monkeypatch, turn=0.9, flip=0.25)
    mirrored = augment(smooth, seeded())
    fix(monkeypatch, turn=0.9, flip=0.75)
    plain = augment(smooth, seeded())
    torch.testing.assert_close(mirrored, plain.flip(-1), rtol=0, atol=1e-5)
