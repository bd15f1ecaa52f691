# SPDX-License-Identifier: BSD-3-Clause
"""What the long commands check before they begin: wrong use should not come out after minutes."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from koopfast._files import check_file_name
from koopfast.errors import ConfigError, KoopfastError


def check_threads(threads: int, argument: str = "--threads") -> None:
    """Raise ConfigError unless this machine has as many processors."""
    most = os.cpu_count() or 1  # OpenMP's library crashes when it can start no more threads
    if not 1 <= threads <= most:
        raise ConfigError(
            f"{argument}: expected 1 to {most}, the processors of this machine, got {threads}"
        )


def check_folder(out: Path, files: Iterable[str]) -> None:
    """Make the folder and write to it; raise ConfigError where it or one of its files cannot be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out: cannot make the folder {str(out)!r}: {error}") from error
    try:
        with tempfile.TemporaryFile(dir=out) as probe:
            probe.write(b"koopfast")
    except OSError as error:
        raise ConfigError(f"--out: cannot write to {str(out)!r}: {error}") from error
    for name in files:
        check_file_name(out / name, "--out")


def check_packages(command: str) -> None:
    """Raise KoopfastError where a package of the extra "demo" is missing."""
    try:
        for package in ("tqdm", "matplotlib", "jinja2"):
            importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise KoopfastError(
            f"{command} needs {error.name}, which is not installed: pip install 'koopfast[demo]'"
        ) from error
