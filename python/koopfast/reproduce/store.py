# SPDX-License-Identifier: BSD-3-Clause
"""A folder of intermediate results, each written whole, so that a killed run can go on."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch

from koopfast._files import write_json, write_whole

__all__ = ["Store"]


class Store:
    """Tensors and JSON by name below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def save_tensors(self, name: str, content: dict[str, Any]) -> None:
        """Write tensors and plain values; the file appears whole or not at all."""
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_whole(self.folder / name, buffer.getvalue())

    def load_tensors(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = torch.load(self.folder / name, weights_only=True)
        return content

    def save_json(self, name: str, content: Any) -> Path:
        """Write JSON; a number that is not finite becomes null."""
        return write_json(self.folder / name, content)

    def load_json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))
