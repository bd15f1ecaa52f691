# SPDX-License-Identifier: BSD-3-Clause
"""``python -m koopfast`` is the command ``koopfast``."""

from __future__ import annotations

import sys

from koopfast.cli import main

if __name__ == "__main__":
    sys.exit(main())
