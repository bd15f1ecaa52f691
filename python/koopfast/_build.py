# SPDX-License-Identifier: BSD-3-Clause
"""What this koopfast was built from and what it runs on."""

from __future__ import annotations

import importlib.metadata
import sys
from dataclasses import dataclass

from koopfast.errors import KoopfastError

__all__ = ["BuildInfo", "build_info"]


@dataclass(frozen=True)
class BuildInfo:
    """Facts about the compiled part and the libraries beside it.

    Attributes:
        version: of koopfast.
        compiler: name and version of the C++ compiler.
        build_type: CMake's, ``"Release"`` in a wheel.
        eigen_version: of the Eigen headers compiled in.
        eigen_dir: folder they lay in when the extension was built.
        isa: instruction set the hot loops use on this processor: ``"avx512f"``, ``"avx2"`` or
            ``"baseline"``.
        openmp: whether threads were compiled in.
        max_threads: threads OpenMP would use now; 1 without OpenMP.
        cuda: whether the CUDA kernels were compiled in (not whether a device is there).
        cuda_version: of nvcc, None without CUDA.
        cuda_architectures: compiled ones, as CMake writes them; empty without CUDA.
        python: version of the interpreter.
        torch: version of torch.
        numpy: version of numpy.
    """

    version: str
    compiler: str
    build_type: str
    eigen_version: str
    eigen_dir: str
    isa: str
    openmp: bool
    max_threads: int
    cuda: bool
    cuda_version: str | None
    cuda_architectures: tuple[str, ...]
    python: str
    torch: str
    numpy: str


def build_info() -> BuildInfo:
    """Versions, compiler, instruction set, threads and CUDA of this installation.

    Raises:
        KoopfastError: the compiled part is missing or of another version than the Python part.

    Example:
        >>> import koopfast
        >>> koopfast.build_info().version == koopfast.__version__
        True
    """
    import numpy as np
    import torch

    try:
        from koopfast import _native
    except ImportError as error:
        if "_native" not in str(error):
            raise
        raise KoopfastError(
            "the compiled part koopfast._native is missing: this is a source tree that was never "
            "built; install it with 'pip install .' and take the source tree off PYTHONPATH"
        ) from error
    native = _native.build_info()
    version = importlib.metadata.version("koopfast")
    if native["version"] != version:
        raise KoopfastError(
            f"the compiled part is of koopfast {native['version']}, the Python part of {version}; "
            "install again with 'pip install --force-reinstall .'"
        )
    return BuildInfo(
        version=version,
        compiler=native["compiler"],
        build_type=native["build_type"],
        eigen_version=native["eigen_version"],
        eigen_dir=native["eigen_dir"],
        isa=_native.isa(),
        openmp=bool(native["openmp"]),
        max_threads=int(native["openmp_max_threads"] or 1),
        cuda=bool(native["cuda_version"]),
        cuda_version=native["cuda_version"] or None,
        cuda_architectures=tuple(native["cuda_architectures"].split()),
        python=".".join(str(part) for part in sys.version_info[:3]),
        torch=torch.__version__,
        numpy=np.__version__,
    )
