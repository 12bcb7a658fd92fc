"""Every perturbation does what its name and its severity say, the same for everybody, and is worse when more severe."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_sample_images

from lab.data import Split, load
from lab.measures import perturbations
from lab.measures.perturbations import PERTURBATIONS, perturbed

SEVERITIES = range(1, 6)
NOISE = ("gaussian_noise", "uniform_noise", "salt_and_pepper")
ORDERLY = tuple(kind for kind in PERTURBATIONS if kind not in NOISE)


@pytest.fixture(scope="module")
def digits():
    return load("digits").test.sample(150)


@pytest.fixture(scope="module")
def photographs():
    """The two photographs that come with scikit-learn, at half their size, in 120 tiles of 3 x 32 x 32."""
    pixels = torch.from_numpy(np.stack(load_sample_images().images)).permute(0, 3, 1, 2).float()
    halved = torch.nn.functional.avg_pool2d(pixels, 2).round().to(torch.uint8)
    tiles = halved.unfold(2, 32, 32).unfold(3, 32, 32).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 32, 32)
    return Split(tiles, torch.arange(len(tiles)))


def constant(value, m=20, channels=3, side=32):
    """Images of one grey level; by default some 60 000 values."""
    return Split(torch.full((m, channels, side, side), value, dtype=torch.uint8), torch.arange(m))


def amounts(kind):
    return [pytest.param(s, a, id=f"severity {s}") for s, a in zip(SEVERITIES, PERTURBATIONS[kind], strict=True)]


def test_there_are_nine_kinds_of_five_severities():
    assert [len(amounts) for amounts in PERTURBATIONS.values()] == [5] * 9


@pytest.mark.parametrize("kind", PERTURBATIONS)
@pytest.mark.parametrize("source", ["digits", "photographs"])
def test_images_stay_images_and_are_worse_when_the_perturbation_is_more_severe(kind, source, request):
    split = request.getfixturevalue(source)
    before = split.images.clone()
    distances = [0.0]
    for severity in SEVERITIES:
        found = perturbed(split, kind, severity)
        assert found.images.dtype == torch.uint8
        assert found.images.shape == split.images.shape
        assert torch.equal(found.labels, split.labels)
        distances.append(float((found.images.double() - before).abs().mean()))
    assert all(np.diff(distances) > 0)
    assert torch.equal(split.images, before)


@pytest.mark.parametrize("kind", PERTURBATIONS)
def test_the_same_seed_gives_the_same_images_and_another_one_other_noise(kind, photographs):
    first, again, other = (perturbed(photographs, kind, 3, seed).images for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (kind in ORDERLY)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("gaussian_noise", [134, 96, 130, 104, 194, 140, 100, 152]),
        ("uniform_noise", [106, 110, 111, 115, 134, 110, 170, 96]),
        ("salt_and_pepper", [128, 255, 128, 0, 128, 255, 128, 128]),
    ],
)
def test_noise_is_the_same_in_every_process(kind, values):
    first = 22 if kind == "salt_and_pepper" else 0  # where some are changed
    found = perturbed(constant(128, 1), kind, 5).images.flatten()[first : first + 8]
    assert found.tolist() == values


@pytest.mark.parametrize("kind", PERTURBATIONS)
def test_an_image_is_perturbed_the_same_however_many_there_are(kind, photographs, monkeypatch):
    whole = perturbed(photographs, kind, 3).images
    few = perturbed(Split(photographs.images[:11], photographs.labels[:11]), kind, 3).images
    monkeypatch.setattr(perturbations, "BATCH", 7)
    in_parts = perturbed(photographs, kind, 3).images
    # What is computed, not drawn, may be rounded to the neighbouring grey level.
    torch.testing.assert_close(few, whole[:11], rtol=0, atol=int(kind in ORDERLY))
    torch.testing.assert_close(in_parts, whole, rtol=0, atol=int(kind in ORDERLY))


@pytest.mark.parametrize("kind", NOISE)
def test_noise_differs_between_images_channels_and_severities(kind):
    first, second = (perturbed(constant(128), kind, s).images.double() - 128 for s in (4, 5))
    for a, b in ((first[::2], first[1::2]), (first[:, 0], first[:, 1]), (first, second)):
        r = np.corrcoef(a.flatten(), b.flatten())[0, 1]
        assert abs(r) < 5 / math.sqrt(a.numel())


@pytest.mark.parametrize(("severity", "std"), amounts("gaussian_noise"))
def test_gaussian_noise_has_its_standard_deviation(severity, std):
    found = perturbed(constant(128), "gaussian_noise", severity).images.double()
    expected = math.sqrt((255 * std) ** 2 + 1 / 12)  # rounding adds the variance of a uniform distribution
    n = found.numel()
    assert abs(found.mean() - 128) < 5 * expected / math.sqrt(n)
    assert abs(found.std() - expected) < 5 * expected / math.sqrt(2 * n)
    within = float(((found - 128).abs() < expected).double().mean())
    assert within == pytest.approx(0.683, abs=0.03)  # a grey level at either end is 0.02 at severity 1


@pytest.mark.parametrize(("severity", "bound"), amounts("uniform_noise"))
def test_uniform_noise_keeps_its_bounds(severity, bound):
    changes = perturbed(constant(128), "uniform_noise", severity).images.double() - 128
    for farthest in (-changes.min(), changes.max()):
        assert 255 * bound - 0.51 <= farthest <= 255 * bound + 0.51
    n, expected = changes.numel(), 255 * bound / math.sqrt(3)
    assert abs(changes.mean()) < 5 * expected / math.sqrt(n)
    assert changes.std() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("kind", ["gaussian_noise", "uniform_noise"])
@pytest.mark.parametrize("value", [0, 255])
def test_black_and_white_are_the_ends_of_the_range(kind, value):
    changes = (perturbed(constant(value), kind, 5).images.double() - value).abs()
    assert float((changes == 0).double().mean()) == pytest.approx(0.5, abs=0.03)
    assert changes.max() < 5.5 * 255 * PERTURBATIONS[kind][4]


@pytest.mark.parametrize(("severity", "share"), amounts("salt_and_pepper"))
def test_salt_and_pepper_change_their_share_of_the_values_to_white_and_black(severity, share):
    found = perturbed(constant(128), "salt_and_pepper", severity).images
    assert found.unique().tolist() == [0, 128, 255]

    def close(mask, expected):
        return abs(mask.double().mean() - expected) < 5 * math.sqrt(expected * (1 - expected) / mask.numel())

    assert close(found == 0, share / 2)
    assert close(found == 255, share / 2)
    # The channels on their own: a pixel is left alone if each of its three values is.
    assert close((found != 128).any(1), 1 - (1 - share) ** 3)


@pytest.mark.parametrize(("severity", "sigma"), amounts("blur"))
def test_blur_is_a_gaussian_filter(severity, sigma, photographs, digits):
    for images in (photographs.images[:20], digits.images[:20]):
        found = perturbed(Split(images, torch.zeros(20)), "blur", severity).images
        radius = math.ceil(3 * sigma)
        expected = gaussian_filter(images.numpy().astype(float), sigma, mode="mirror", radius=radius, axes=(2, 3))
        # Half a grey level is rounding, the rest is for the float32 within.
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=0.51)


@pytest.mark.parametrize(("severity", "amount"), amounts("brightness"))
def test_brightness_is_added_and_leaves_the_hue(severity, amount):
    for value in (0, 100, 250):
        expected = min(round(value + 255 * amount), 255)
        for channels in (1, 3):
            found = perturbed(constant(value, 1, channels), "brightness", severity).images
            assert found.unique().tolist() == [pytest.approx(expected, abs=1)]
    colour = Split(torch.tensor([150, 100, 0], dtype=torch.uint8).reshape(1, 3, 1, 1), torch.zeros(1))
    largest = 150 + 255 * amount
    found = perturbed(colour, "brightness", severity).images.flatten().tolist()
    assert found == pytest.approx([largest, largest * 100 / 150, 0], abs=0.51)


@pytest.mark.parametrize(("severity", "kept"), amounts("contrast"))
def test_contrast_shrinks_the_differences_to_the_mean(severity, kept, digits, photographs):
    before, after = digits.images.double(), perturbed(digits, "contrast", severity).images.double()
    mean = before.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(after, mean + kept * (before - mean), rtol=0, atol=0.51)
    # In colour it is the mean luma that is kept, all the channels' alike.
    luma = torch.tensor([0.2989, 0.587, 0.114], dtype=torch.float64)
    before, after = photographs.images.double(), perturbed(photographs, "contrast", severity).images.double()
    mean = torch.einsum("mchw,c->m", before, luma)[:, None, None, None] / (32 * 32)
    torch.testing.assert_close(after, mean + kept * (before - mean), rtol=0, atol=0.51)


@pytest.mark.parametrize(("severity", "kept"), amounts("pixelate"))
def test_pixelate_leaves_blocks(severity, kept, photographs):
    found = perturbed(photographs, "pixelate", severity).images
    for axis in (2, 3):
        # A row or column equals the one before unless a block begins there.
        begins = (found.narrow(axis, 1, 31) != found.narrow(axis, 0, 31)).transpose(axis, 3).flatten(0, 2).any(0)
        assert int(begins.sum()) + 1 == round(32 * kept)


def test_pixelate_at_half_the_side_averages_pairs():
    assert PERTURBATIONS["pixelate"][2] == 0.5
    ramp = (7 * torch.arange(32, dtype=torch.uint8)).expand(1, 1, 32, 32)
    found = perturbed(Split(ramp, torch.zeros(1)), "pixelate", 3).images[0, 0, 5]
    pairs = 7 * (2 * torch.arange(16) + 0.5)
    # But for the first and the last pair: a filter that reaches over the pair's ends is cut off there.
    assert found[2:30:2].tolist() == found[3:31:2].tolist() == pytest.approx(pairs[1:-1].tolist(), abs=0.51)


@pytest.mark.parametrize(("severity", "quality"), amounts("jpeg"))
def test_jpeg_is_what_another_encoder_and_decoder_give(severity, quality, photographs, digits):
    for images in (photographs.images[:20], digits.images[:20]):
        found = perturbed(Split(images, torch.zeros(20)), "jpeg", severity).images
        for image, one in zip(images.permute(0, 2, 3, 1).numpy(), found.permute(0, 2, 3, 1).numpy(), strict=True):
            file = io.BytesIO()
            Image.fromarray(image.squeeze()).save(file, "JPEG", quality=quality)
            expected = np.asarray(Image.open(file)).reshape(one.shape).astype(int)
            # The same to the last bit where both use the same version of libjpeg-turbo.
            np.testing.assert_allclose(one, expected, rtol=0, atol=2)
            assert np.abs(one - expected).mean() < 0.1


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_hardly_changes_a_constant_image(channels):
    for severity in SEVERITIES:
        for value in (0, 77, 255):
            changes = perturbed(constant(value, 1, channels), "jpeg", severity).images.int() - value
            assert changes.abs().max() <= 2


def test_a_quarter_turn_moves_every_pixel_counterclockwise(monkeypatch, photographs):
    monkeypatch.setitem(PERTURBATIONS, "rotation", (90, 180, 270, 360, 0))
    for severity, turns in enumerate((1, 2, 3, 4, 0), 1):
        found = perturbed(photographs, "rotation", severity).images
        # numpy turns from the first axis to the second: counterclockwise, as rows go down.
        expected = np.rot90(photographs.images.numpy(), turns, (2, 3))
        np.testing.assert_allclose(found.numpy().astype(int), expected, rtol=0, atol=1)


@pytest.mark.parametrize(("severity", "degrees"), amounts("rotation"))
def test_rotation_moves_a_dot_by_its_angle(severity, degrees):
    images = torch.zeros(1, 1, 33, 33, dtype=torch.uint8)
    images[..., 15:18, 25:28] = 255  # ten pixels to the right of the centre
    found = perturbed(Split(images, torch.zeros(1)), "rotation", severity).images[0, 0].double()
    offsets = torch.arange(33).double() - 16
    right, down = (float(found.sum(axis) @ offsets / found.sum()) for axis in (0, 1))
    # The grey values that bilinear interpolation gives are not quite centred: 0.02 pixels are a tenth of a degree here.
    assert math.degrees(math.atan2(-down, right)) == pytest.approx(degrees, abs=0.1)
    assert math.hypot(right, down) == pytest.approx(10, abs=0.03)


def test_what_turns_in_from_outside_is_black():
    found = perturbed(constant(200, 1, 1), "rotation", 5).images[0, 0]
    assert found[0, 0] == found[0, -1] == found[-1, 0] == found[-1, -1] == 0
    assert found[16, 16] == 200


@pytest.mark.parametrize("kind", PERTURBATIONS)
@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (2, 3, 2, 5)])
def test_tiny_images_and_such_that_are_not_square_can_be_perturbed(kind, shape):
    images = torch.randint(256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert perturbed(Split(images, torch.arange(2)), kind, 5).images.shape == shape


def test_an_unknown_kind_is_refused(digits):
    with pytest.raises(ValueError, match="unknown perturbation 'fog': there are gaussian_noise, .*, rotation$"):
        perturbed(digits, "fog", 1)


@pytest.mark.parametrize("severity", [0, 6, -1, 2.5])
def test_a_severity_out_of_range_is_refused(digits, severity):
    with pytest.raises(ValueError, match=f"the severity must be 1, 2, 3, 4 or 5, not {severity}"):
        perturbed(digits, "blur", severity)


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (torch.zeros(4, 1, 8, 8), r"float32 \(4, 1, 8, 8\)"),
        (torch.zeros(4, 8, 8, dtype=torch.uint8), r"uint8 \(4, 8, 8\)"),
        (torch.zeros(4, 2, 8, 8, dtype=torch.uint8), r"uint8 \(4, 2, 8, 8\)"),
    ],
)
def test_images_of_another_form_are_refused(images, found):
    with pytest.raises(ValueError, match=r"images must be uint8 \(m, 1 or 3 channels, height, width\), not " + found):
        perturbed(Split(images, torch.zeros(4)), "blur", 1)


def test_no_images_are_refused(digits):
    with pytest.raises(ValueError, match="no images to perturb"):
        perturbed(Split(digits.images[:0], digits.labels[:0]), "blur", 1)
