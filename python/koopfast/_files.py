# SPDX-License-Identifier: BSD-3-Clause
"""Files that appear whole or not at all, and only where a file belongs."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from koopfast.errors import ConfigError


def check_file_name(path: str | os.PathLike[str], argument: str = "path") -> None:
    """Raise ConfigError if ``path`` leads to a folder, a device, a pipe or a socket."""
    given = Path(path)
    if given.is_dir():
        raise ConfigError(f"{argument}: expected a file name, got the folder {str(given)!r}")
    if given.exists() and not given.is_file():
        raise ConfigError(
            f"{argument}: expected a file name, got {str(given)!r}, which is not a regular file"
        )


@contextlib.contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write to that becomes ``path`` when the block ends; its folder is made.

    It is written beside the file, is on the disk (fsync) before it takes its place, and takes it in
    one step; of a symbolic link, the place of the file that the link leads to. Whenever the
    process dies, ``path`` is the old file or the new one.

    Raises:
        ConfigError: ``path`` leads to something that is not a file.
        OSError: it cannot be written; what was there is still there.
    """
    check_file_name(path)
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, target)
        _sync_folder(target.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write ``content`` to ``path`` and return it; errors as :func:`written_whole`."""
    with written_whole(path) as file:
        file.write(content)
    return Path(path)


def _sync_folder(folder: Path) -> None:
    """Have the new name on the disk too, where the file system can be told so."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: str | os.PathLike[str], content: Any) -> Path:
    """Write ``content`` as JSON like :func:`write_whole`; a number that is not finite is null."""
    text = json.dumps(_finite(content), indent=1, allow_nan=False)
    return write_whole(path, f"{text}\n".encode())


def jsonable(value: Any) -> Any:
    """JSON has neither tensors nor NaN and infinity: lists and strings stand for them."""
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    # A tensor or an array, known without importing either.
    return value.tolist() if hasattr(value, "tolist") else value


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
