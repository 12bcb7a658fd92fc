"""Image files in a folder or a tar archive, from anybody: what is no plain image of the right kind is refused."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG")  # of others, some are programs: the image library hands EPS to Ghostscript
LARGEST = 1_000_000  # bytes of a file; one of 32 x 32 pixels has at most some thousands
LARGEST_IN_ALL = 1_000_000_000  # bytes of all files of an archive
MOST = 200_000  # files and folders of an archive


class _Member(tarfile.TarInfo):
    """A member of an archive, refused by its header alone: some hold text of the length that they tell, to be read."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)
        if member.size > LARGEST:
            raise ValueError(f"{member.name!r} has {member.size / 1e6:.0f} MB, too much for an image of so few pixels")
        return member


def image_files(source: Path) -> Iterator[tuple[str, bytes]]:
    """The names and contents of the files ``*/*/*`` in a folder, or of all in a tar archive, in the order of the names.

    What macOS leaves beside files, ``.DS_Store`` and ``._*``, is skipped. Raises RuntimeError for an archive that is
    corrupt or has too many members, and for what is no plain file, too large, there twice, or named as if it lay
    elsewhere.
    """
    if source.is_dir():
        for path in sorted(source.glob("*/*/*")):
            name = path.relative_to(source).as_posix()
            if not _is_left_by_macos(name):
                _check(source, name, path.is_file(), path.stat().st_size)
                yield name, path.read_bytes()
        return
    try:
        with tarfile.open(source, tarinfo=_Member) as archive:
            contents = _contents(source, archive)
    except (PermissionError, RuntimeError):
        raise
    except ValueError as error:
        raise RuntimeError(f"{source}: {error}") from error
    except Exception as error:  # tarfile, lzma and zlib each raise an error class of their own
        raise RuntimeError(f"the archive {source} is corrupt: {error}") from error
    yield from sorted(contents.items())


def _contents(source: Path, archive: tarfile.TarFile) -> dict[str, bytes]:
    """The files of an archive by their names, which it has in any order."""
    contents: dict[str, bytes] = {}
    size = 0
    for number, member in enumerate(archive):
        if number == MOST:
            raise RuntimeError(f"{source} has more than {MOST} members: it is no archive of images")
        if member.isdir() or _is_left_by_macos(member.name):
            continue
        _check(source, member.name, member.isreg(), member.size)
        size += member.size
        if size > LARGEST_IN_ALL:
            raise RuntimeError(f"{source} unpacks to more than {LARGEST_IN_ALL / 1e9:g} GB: it is no archive of images")
        if member.name in contents:
            raise RuntimeError(f"{source} has the file {member.name!r} twice")
        if member.name.startswith("/") or ".." in member.name.split("/"):
            raise RuntimeError(f"{source} has the file {member.name!r}, which leads out of the archive")
        file = archive.extractfile(member)
        contents[member.name] = file.read() if file is not None else b""
    return contents


def _check(source: Path, name: str, is_plain: bool, size: int) -> None:
    if not is_plain:
        raise RuntimeError(f"{source}: {name!r} is no plain file, but a link, a device or a folder")
    if size > LARGEST:
        raise RuntimeError(f"{source}: {name!r} has {size / 1e6:.0f} MB, too much for an image of so few pixels")


def _is_left_by_macos(name: str) -> bool:
    last = name.rpartition("/")[2]
    return last == ".DS_Store" or last.startswith("._")


def pixels(content: bytes, side: int) -> np.ndarray:
    """The pixels (side, side, 3), in uint8, of an image file.

    Raises ValueError, saying what it is instead, for one that is no PNG or JPEG, of another size, or without colours.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        if image.size == (side, side):
            image.load()
    except UnidentifiedImageError as error:
        raise ValueError("is corrupt, or no PNG or JPEG") from error
    except Exception as error:  # the image library raises errors of many classes
        raise ValueError(f"is corrupt ({error})") from error
    if image.size != (side, side):
        raise ValueError(f"is {image.width} x {image.height}, not {side} x {side}")
    if image.mode != "RGB":
        raise ValueError(f"has the mode {image.mode!r}, not the colours 'RGB'")
    return np.asarray(image)
