"""The loaders give the pixels that are in the files, set some aside, name what is corrupt, and fingerprint it all."""

import io
import lzma
import os
import shutil
import struct
import tarfile
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from lab import data, image_files
from lab.data import CIFAR10_CLASSES, Split, load


def test_an_unknown_data_set_is_refused():
    with pytest.raises(ValueError, match="unknown data set 'svhn': there are digits, mnist, cifar10"):
        load("svhn")


def test_digits_are_the_same_for_everybody():
    digits = load("digits")
    assert digits.train.images.shape == (1347, 1, 8, 8)
    assert digits.test.images.shape == (450, 1, 8, 8)
    assert digits.train.images.dtype == torch.uint8
    assert digits.train.labels.dtype == torch.int64
    assert digits.classes == 10
    assert (int(digits.train.images.min()), int(digits.train.images.max())) == (0, 255)
    # Pixels, labels and their split: published results carry this.
    assert digits.fingerprint == load("digits").fingerprint == "d5aaeae006b3c47a"


def test_a_sample_is_some_of_the_images_the_same_for_the_same_seed():
    split = Split(torch.arange(50, dtype=torch.uint8).reshape(50, 1, 1, 1), torch.arange(50))
    sample = split.sample(20, seed=1)
    assert sample.labels.unique().numel() == 20
    assert torch.equal(sample.images.flatten(), sample.labels.to(torch.uint8))
    assert torch.equal(sample.labels, split.sample(20, seed=1).labels)
    assert not torch.equal(sample.labels, split.sample(20, seed=2).labels)
    assert torch.equal(split.sample(99).labels.sort().values, split.labels)


def test_a_data_folder_that_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("REBASIN_DATA", str(tmp_path / "nowhere"))
    for name in ("mnist", "cifar10"):
        with pytest.raises(FileNotFoundError, match="REBASIN_DATA names .*nowhere, which is not a folder"):
            load(name)


@pytest.fixture
def mnist(monkeypatch, tmp_path):
    """MNIST's four files in a folder, with 20 training and 10 test images; the training images are at hand."""
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, n in (("t10k", 10), ("train", 20)):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = np.arange(n, dtype=np.uint8) % 10
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, n, 28, 28) + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, n) + labels.tobytes())
    monkeypatch.setenv("REBASIN_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(data, "MNIST_IMAGES", {"train": 20, "test": 10})
    return raw / "train-images-idx3-ubyte", images


def test_mnist_is_read_from_the_data_folder(mnist):
    _, images = mnist
    dataset = load("mnist")
    assert torch.equal(dataset.train.images, torch.from_numpy(images).unsqueeze(1))
    assert dataset.train.labels.tolist() == [*range(10), *range(10)]
    assert dataset.test.images.shape == (10, 1, 28, 28)
    assert dataset.test.labels.dtype == torch.int64


def test_the_fingerprint_changes_with_a_single_pixel(mnist):
    path, _ = mnist
    before = load("mnist").fingerprint
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert load("mnist").fingerprint != before
    content[-1] ^= 1
    path.write_bytes(content)
    assert load("mnist").fingerprint == before


def numbered(split, images):
    """The positions in ``images`` of the split's, and a check that the labels are theirs (MNIST's fixture)."""
    position = {image.tobytes(): i for i, image in enumerate(images)}
    positions = [position[image.numpy().tobytes()] for image in split.images]
    assert split.labels.tolist() == [i % 10 for i in positions]
    return positions


@pytest.mark.parametrize("held_out", [1, 6, 19])
def test_held_out_images_are_taken_from_the_training_images_and_the_rest_stays_in_order(mnist, held_out):
    _, images = mnist
    dataset = load("mnist", held_out)
    aside, rest = numbered(dataset.held_out, images), numbered(dataset.train, images)
    assert len(aside) == held_out
    assert sorted(aside + rest) == list(range(20))
    assert rest == sorted(rest)
    assert dataset.held_out.images.dtype == torch.uint8
    assert dataset.held_out.labels.dtype == torch.int64


def test_held_out_images_are_drawn_at_random_and_not_the_first_or_last():
    digits = load("digits", 300)
    # The digits are shuffled, with about 10 % of each: of 300 drawn, 30 each, with a deviation of at most 5.
    assert (digits.held_out.labels.bincount(minlength=10) - 30).abs().max() < 25
    all_images = load("digits").train.images
    for block in (all_images[:300], all_images[-300:]):
        there = {image.numpy().tobytes() for image in block}
        # A random 300 of 1347 has 67 in common with a block of 300, with a deviation of 6.
        common = sum(image.numpy().tobytes() in there for image in digits.held_out.images)
        assert 36 < common < 98


def test_held_out_images_are_the_same_for_every_call():
    np.random.seed(1)
    first = load("digits", 300)
    np.random.seed(2)
    second = load("digits", 300)
    assert first.fingerprint == second.fingerprint
    for split in ("train", "held_out"):
        assert torch.equal(getattr(first, split).images, getattr(second, split).images)
        assert torch.equal(getattr(first, split).labels, getattr(second, split).labels)


def test_nothing_is_held_out_unless_asked_for(mnist):
    _, images = mnist
    dataset = load("mnist")
    assert dataset.held_out.images.shape == (0, 1, 28, 28)
    assert dataset.held_out.labels.shape == (0,)
    assert numbered(dataset.train, images) == list(range(20))
    assert dataset.fingerprint == load("mnist", 0).fingerprint


def test_the_fingerprint_changes_with_the_number_of_held_out_images(mnist):
    assert len({load("mnist", held_out).fingerprint for held_out in (0, 1, 2, 10)}) == 4


@pytest.mark.parametrize("held_out", [-1, 20, 21])
def test_holding_out_fewer_than_no_or_all_images_is_refused(mnist, held_out):
    message = f"held_out must be from 0 to below the 20 training images, got {held_out}"
    with pytest.raises(ValueError, match=message):
        load("mnist", held_out)


@pytest.mark.parametrize("kept", [0, 10, 5000])
def test_a_truncated_mnist_file_is_said_to_be_corrupt(mnist, kept):
    path, _ = mnist
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(RuntimeError, match="MNIST"):
        load("mnist")


@pytest.fixture
def cifar10(monkeypatch, tmp_path):
    """A folder of PNG images for CIFAR-10: two training images and one test image for each class."""
    folder = tmp_path / "data" / "cifar10-jpeg"
    rng = np.random.default_rng(0)
    for split, n in (("train", 2), ("test", 1)):
        for name in CIFAR10_CLASSES:
            (folder / split / name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    monkeypatch.setenv("REBASIN_DATA", str(folder.parent))
    monkeypatch.setattr(data, "CIFAR10_IMAGES", {"train": 2, "test": 1})
    return folder


def pack(folder):
    """Put the folder into the archive beside it, which is then what counts."""
    archive = folder.with_name("cifar10-jpeg.tar.xz")
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(folder, folder.name)
    return archive


def test_cifar10_has_the_pixels_and_labels_of_its_image_files(cifar10):
    dataset = load("cifar10")
    assert dataset.train.images.shape == (20, 3, 32, 32)
    assert dataset.train.images.dtype == torch.uint8
    assert dataset.train.labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert dataset.test.labels.tolist() == list(range(10))
    second_cat = torch.from_numpy(np.array(Image.open(cifar10 / "train" / "cat" / "1.png")))
    assert torch.equal(dataset.train.images[7], second_cat.permute(2, 0, 1))
    green = dataset.train.images[:, 1].double() / 255
    # The statistics are kept with four digits.
    assert dataset.mean[1] == pytest.approx(green.mean().item(), abs=5.1e-5)
    assert dataset.std[1] == pytest.approx(green.std().item(), abs=5.1e-5)


def test_holding_images_out_changes_neither_the_test_images_nor_the_normalisation(cifar10):
    whole, parted = load("cifar10"), load("cifar10", 12)
    assert torch.equal(parted.test.images, whole.test.images)
    assert torch.equal(parted.test.labels, whole.test.labels)
    assert (parted.mean, parted.std, parted.title) == (whole.mean, whole.std, whole.title)


def test_cifar10_is_the_same_from_a_folder_and_from_an_archive(cifar10):
    from_folder = load("cifar10")
    pack(cifar10)
    for path in cifar10.glob("*/*/*"):
        path.unlink()
    from_archive = load("cifar10")
    for split in ("train", "test"):
        assert torch.equal(getattr(from_folder, split).images, getattr(from_archive, split).images)
        assert torch.equal(getattr(from_folder, split).labels, getattr(from_archive, split).labels)


def test_cifar10_is_decoded_once(cifar10, monkeypatch):
    before = load("cifar10")
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("decoded again"))
    assert load("cifar10").fingerprint == before.fingerprint


def test_a_changed_image_is_decoded_anew_and_changes_the_fingerprint(cifar10):
    before = load("cifar10").fingerprint
    path = cifar10 / "test" / "frog" / "0.png"
    pixels = np.array(Image.open(path))
    pixels[3, 4, 1] ^= 1
    Image.fromarray(pixels).save(path)
    after = load("cifar10")
    assert torch.equal(after.test.images[6], torch.from_numpy(pixels).permute(2, 0, 1))
    assert after.fingerprint != before


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("content", [b"", b"no image", "half"])
def test_a_corrupt_image_is_named(cifar10, content, packed):
    path = cifar10 / "train" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:1500] if content == "half" else content)
    if packed:
        pack(cifar10)
    with pytest.raises(RuntimeError, match=r"the image '.*train/dog/1.png' is corrupt"):
        load("cifar10")


@pytest.mark.parametrize("packed", [False, True])
def test_an_image_of_another_size_is_named(cifar10, packed):
    Image.new("RGB", (16, 32)).save(cifar10 / "train" / "dog" / "1.png")
    if packed:
        pack(cifar10)
    with pytest.raises(RuntimeError, match="train/dog/1.png"):
        load("cifar10")


@pytest.mark.parametrize("spoil", [lambda whole: whole[: len(whole) // 2], lambda _: b"no archive", lambda _: b""])
def test_a_corrupt_archive_is_named(cifar10, spoil):
    archive = pack(cifar10)
    archive.write_bytes(spoil(archive.read_bytes()))
    with pytest.raises(RuntimeError, match=r"the archive .*cifar10-jpeg.tar.xz is corrupt"):
        load("cifar10")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("stray", ["train/zebra/0.png", "valid/cat/0.png"])
def test_a_folder_that_is_no_class_or_split_is_named(cifar10, stray, packed):
    (cifar10 / stray).parent.mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(cifar10 / stray)
    if packed:
        pack(cifar10)
    with pytest.raises(RuntimeError, match=f"'.*{stray}' is not <train or test>/<class>/<image>"):
        load("cifar10")


def test_a_stray_file_at_the_top_of_an_archive_is_named(cifar10):
    archive = cifar10.with_name("cifar10-jpeg.tar.xz")
    (cifar10.parent / "README").write_text("images")
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(cifar10.parent / "README", "README")
        tar.add(cifar10, "")
    with pytest.raises(RuntimeError, match="'README' is not <train or test>/<class>/<image>"):
        load("cifar10")


def refused(message):
    return pytest.raises(RuntimeError, match=message)


EXPECTED = "expected are 2 of each class under train/ and 1 under test/"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("test/*/*", "test/airplane/ has 0 images where CIFAR-10 has 1"),
        ("train/dog/*", "train/dog/ has 0 images where CIFAR-10 has 2"),
        ("train/cat/1.png", "train/cat/ has 1 images where CIFAR-10 has 2"),
    ],
)
def test_images_that_are_missing_are_counted_by_class(cifar10, packed, missing, message):
    for path in cifar10.glob(missing):
        path.unlink()
    if packed:
        pack(cifar10)
    with refused(f"{message}: {EXPECTED}"):
        load("cifar10")


def test_images_too_many_are_counted_by_class(cifar10):
    shutil.copy(cifar10 / "test" / "ship" / "0.png", cifar10 / "test" / "ship" / "1.png")
    with refused(f"test/ship/ has 2 images where CIFAR-10 has 1: {EXPECTED}"):
        load("cifar10")


@pytest.mark.parametrize("packed", [False, True])
def test_what_macos_leaves_beside_files_changes_nothing(cifar10, packed):
    before = load("cifar10")
    for name in (".DS_Store", "._0.png"):
        (cifar10 / "train" / "cat" / name).write_bytes(b"of a finder")
    if packed:
        (cifar10 / ".DS_Store").write_bytes(b"of a finder")
        pack(cifar10)
    after = load("cifar10")
    assert torch.equal(after.train.images, before.train.images)
    assert packed or after.fingerprint == before.fingerprint


POSTSCRIPT = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 32 32
(/tmp/written by postscript) (w) file closefile
showpage
"""


@pytest.mark.parametrize("packed", [False, True])
def test_no_image_starts_another_program(cifar10, packed, monkeypatch):
    """An EPS file is a program, which the image library hands to Ghostscript where that is installed."""
    path = cifar10 / "train" / "cat" / "1.png"
    path.write_bytes(POSTSCRIPT)
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    if packed:
        pack(cifar10)
    with refused("the image '.*train/cat/1.png' is corrupt, or no PNG or JPEG"):
        load("cifar10")


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM"])
def test_only_png_and_jpeg_are_opened(cifar10, kind):
    path = cifar10 / "train" / "cat" / "1.png"
    Image.open(path).save(path, format=kind)
    with refused("the image '.*train/cat/1.png' is corrupt, or no PNG or JPEG"):
        load("cifar10")


def test_an_image_without_colours_is_named(cifar10):
    path = cifar10 / "train" / "cat" / "1.png"
    Image.open(path).convert("L").save(path)
    with refused("the image 'train/cat/1.png' has the mode 'L', not the colours 'RGB'"):
        load("cifar10")


def test_an_image_of_very_many_pixels_is_not_decoded(cifar10):
    path = cifar10 / "train" / "cat" / "1.png"
    content = path.read_bytes()
    for side, message in ((30_000, "is corrupt .*exceeds limit"), (9_000, "is 9000 x 9000, not 32 x 32")):
        header = b"IHDR" + struct.pack(">2i5B", side, side, 8, 2, 0, 0, 0)
        path.write_bytes(content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:])
        with refused(f"the image 'train/cat/1.png' {message}"):
            load("cifar10")


def archive_of(cifar10, *members):
    """The archive of all images with these members, each a name, a kind and a content, behind them."""
    with tarfile.open(pack(cifar10), "w:xz") as tar:
        tar.add(cifar10, "")
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = kind, len(content), "train/cat/0.png"
            tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_a_link_or_device_in_an_archive_is_refused(cifar10, kind):
    archive_of(cifar10, ("train/cat/9.png", kind, b""))
    with refused("'train/cat/9.png' is no plain file, but a link, a device or a folder"):
        load("cifar10")


def test_a_device_in_a_folder_is_refused_and_not_waited_for(cifar10):
    os.mkfifo(cifar10 / "train" / "cat" / "9.png")
    with refused("'train/cat/9.png' is no plain file, but a link, a device or a folder"):
        load("cifar10")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("train/cat/0.png", "has the file 'train/cat/0.png' twice"),
        ("../train/cat/9.png", "has the file '../train/cat/9.png', which leads out of the archive"),
        ("/train/cat/9.png", "has the file '/train/cat/9.png', which leads out of the archive"),
    ],
)
def test_a_name_that_is_there_twice_or_leads_elsewhere_is_refused(cifar10, name, message):
    archive_of(cifar10, (name, tarfile.REGTYPE, (cifar10 / "train" / "cat" / "0.png").read_bytes()))
    with refused(message):
        load("cifar10")


def test_an_archive_that_unpacks_to_very_much_ends_early(cifar10, monkeypatch):
    archive_of(cifar10, ("train/cat/9.png", tarfile.REGTYPE, bytes(3_000_000)))
    with refused("'train/cat/9.png' has 3 MB, too much for an image of so few pixels"):
        load("cifar10")
    archive_of(cifar10, *((f"train/cat/{n}.png", tarfile.REGTYPE, bytes(600_000)) for n in range(10, 14)))
    monkeypatch.setattr(image_files, "LARGEST_IN_ALL", 2_000_000)
    with refused("unpacks to more than 0.002 GB: it is no archive of images"):
        load("cifar10")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE])
def test_a_header_that_promises_gigabytes_ends_it_before_they_are_read(cifar10, kind):
    header = tarfile.TarInfo("train/cat/9.png")
    header.type, header.size = kind, 3_000_000_000
    with lzma.open(pack(cifar10), "wb", preset=0) as packed:
        packed.write(header.tobuf() + bytes(40_000_000))
    tracemalloc.start()
    with refused("'train/cat/9.png' has 3000 MB, too much for an image of so few pixels"):
        load("cifar10")
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_an_archive_of_more_members_than_images_ends_early(cifar10, monkeypatch):
    archive_of(cifar10, *((f"folder{n}", tarfile.DIRTYPE, b"") for n in range(10)))
    monkeypatch.setattr(image_files, "MOST", 25)
    with refused("has more than 25 members: it is no archive of images"):
        load("cifar10")


@pytest.mark.parametrize(("images", "labels"), [(20, 15), (20, 25), (12, 20), (12, 12)])
def test_images_or_labels_that_mnist_has_not_are_counted(mnist, images, labels):
    path, pixels = mnist
    path.write_bytes(struct.pack(">4i", 2051, images, 28, 28) + pixels[:images].tobytes())
    path.with_name("train-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, labels) + bytes(labels))
    with refused(f"has {images} images and {labels} labels where MNIST has 20 of each"):
        load("mnist")
