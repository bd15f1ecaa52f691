# SPDX-License-Identifier: BSD-3-Clause
"""The error of a report whose libraries are not installed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from koopfast.errors import KoopfastError


@contextlib.contextmanager
def needed(package: str) -> Iterator[None]:
    """Imports of `package` inside: where it is missing, how to install it."""
    try:
        yield
    except ImportError as error:
        raise KoopfastError(
            f"reports and figures need {package}, which cannot be imported ({error}); "
            f"pip install 'koopfast[plots]'"
        ) from error
