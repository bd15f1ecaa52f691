# SPDX-License-Identifier: BSD-3-Clause
"""What is installed, what a wheel and a source archive hold, and that the house files agree.

KOOPFAST_DIST names a folder with a built wheel and source archive; then those are read too.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

import koopfast
from koopfast import _native

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DIST = os.environ.get("KOOPFAST_DIST")

SOURCE_SUFFIXES = {".cpp", ".h", ".cu", ".cuh", ".c", ".o", ".a"}
# What a module compiled with a static CUDA run-time may ask of the machine: no driver, no toolkit.
SYSTEM_LIBRARIES = re.compile(
    r"lib(gomp|stdc\+\+|gcc_s|m|c|pthread|dl|rt)\.so\.\d+|ld-linux[\w-]*\.so\.\d+"
)


def installed_files() -> list[PurePosixPath]:
    files = importlib.metadata.files("koopfast")
    assert files is not None
    return [
        PurePosixPath(file) for file in files if file.suffix != ".pyc" and ".." not in file.parts
    ]


def wheel_files() -> list[PurePosixPath]:
    assert DIST is not None
    (wheel,) = Path(DIST).glob("koopfast-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return [PurePosixPath(name) for name in archive.namelist()]


@pytest.fixture(params=["installed"] + (["wheel"] if DIST else []))
def shipped(request: pytest.FixtureRequest) -> list[PurePosixPath]:
    return installed_files() if request.param == "installed" else wheel_files()


@pytest.fixture(scope="module")
def source_archive(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Members of the source archive, without its top folder."""
    folder = Path(DIST) if DIST else tmp_path_factory.mktemp("sdist")
    if not DIST:
        code = (
            "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
        )
        subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=True, timeout=120)
    (path,) = folder.glob("koopfast-*.tar.gz")
    with tarfile.open(path) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def test_the_wheel_holds_one_package_and_its_metadata(shipped: list[PurePosixPath]) -> None:
    metadata = f"koopfast-{koopfast.__version__}.dist-info"
    assert {file.parts[0] for file in shipped} == {"koopfast", metadata}


def test_the_wheel_holds_no_tests_sources_or_headers(shipped: list[PurePosixPath]) -> None:
    assert not [file for file in shipped if file.suffix in SOURCE_SUFFIXES]
    assert not [file for file in shipped if {"tests", "bench", "cpp", "cuda"} & set(file.parts)]


def test_the_wheel_holds_types_licence_and_one_extension(shipped: list[PurePosixPath]) -> None:
    names = [file.name for file in shipped]
    assert {"py.typed", "_native.pyi", "LICENSE", "NOTICE"} <= set(names)
    assert len([name for name in names if name.endswith(".so")]) == 1


@pytest.mark.parametrize("suffix", [".py", ".pyi", ".j2", ".css"])
def test_every_file_of_the_source_tree_is_shipped(
    shipped: list[PurePosixPath], suffix: str
) -> None:
    tree = {
        path.relative_to(ROOT / "python").as_posix()
        for path in (ROOT / "python" / "koopfast").rglob(f"*{suffix}")
    }
    assert tree
    assert tree == {str(file) for file in shipped if file.suffix == suffix}


def test_the_source_archive_holds_all_that_a_build_and_its_tests_need(
    source_archive: set[str],
) -> None:
    wanted = {"pyproject.toml", "CMakeLists.txt", "LICENSE", "NOTICE", "README.md", "PKG-INFO"}
    for folder in ("cpp", "cuda", "python", "tests", "bench", "examples"):
        wanted |= {
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / folder).rglob("*")
            if path.suffix in {".cpp", ".h", ".cu", ".cuh", ".py", ".pyi"}
        }
    assert wanted <= source_archive


def test_the_source_archive_leaves_build_products_out(source_archive: set[str]) -> None:
    tops = {name.partition("/")[0] for name in source_archive}
    assert not tops & {".git", ".ci", ".venv", "build", "dist", "out"}
    assert not [name for name in source_archive if name.endswith((".so", ".pyc", ".o"))]


def test_the_extension_needs_neither_driver_nor_cuda_toolkit() -> None:
    table = subprocess.run(
        ["readelf", "--dynamic", _native.__file__], capture_output=True, text=True, check=True
    ).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", table)
    assert "libc.so.6" in needed
    assert not [library for library in needed if not SYSTEM_LIBRARIES.fullmatch(library)]
    assert "RUNPATH" not in table
    assert "RPATH" not in table


def test_run_time_dependencies_are_numpy_and_torch_alone() -> None:
    requirements = importlib.metadata.requires("koopfast") or []
    always = {re.split(r"[^\w.-]", line)[0] for line in requirements if "extra ==" not in line}
    assert always == {"numpy", "torch"}


def test_the_version_is_the_same_everywhere() -> None:
    version = PROJECT["project"]["version"]
    assert koopfast.__version__ == koopfast.build_info().version == version
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(version)}\b", changes, re.MULTILINE)


def test_the_compiled_eigen_is_the_pinned_one() -> None:
    (pin,) = [
        line for line in PROJECT["build-system"]["requires"] if line.startswith("cmeel-eigen")
    ]
    assert f"{pin.partition('==')[2]}.".startswith(f"{koopfast.build_info().eigen_version}.")
    assert koopfast.build_info().eigen_dir.endswith("eigen3")
    assert koopfast.build_info().eigen_version in (ROOT / "NOTICE").read_text(encoding="utf-8")


def requirements_of_project() -> Iterator[str]:
    yield from PROJECT["build-system"]["requires"]
    yield from PROJECT["project"]["dependencies"]
    for extra in PROJECT["project"]["optional-dependencies"].values():
        yield from extra


def test_constraints_pin_every_requirement_exactly() -> None:
    def plain(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert not [line for line in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", line)]
    pinned = {plain(line.partition("==")[0]) for line in pins}
    wanted = {plain(re.split(r"[^\w.-]", line)[0]) for line in requirements_of_project()}
    assert wanted <= pinned


def test_every_source_file_names_its_licence_first() -> None:
    paths = [ROOT / "CMakeLists.txt", ROOT / "Makefile", ROOT / "pyproject.toml"]
    for folder in ("cpp", "cuda", "python", "tests", "bench", "examples"):
        for suffix in (".py", ".pyi", *SOURCE_SUFFIXES):
            paths += (ROOT / folder).rglob(f"*{suffix}")
    assert len(paths) > 30
    without = [
        path.relative_to(ROOT).as_posix()
        for path in paths
        if "SPDX-License-Identifier: BSD-3-Clause" not in path.read_text("utf-8").partition("\n")[0]
    ]
    assert not without


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, koopfast; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    ).stdout.split()
    assert not {"torch", "numpy", "matplotlib", "jinja2", "tqdm"} & set(modules)


def test_using_every_public_name_imports_no_plotting() -> None:
    code = (
        "import sys, torch, koopfast\n"
        "torch_brings = set(sys.modules)\n"  # tqdm, where it is installed
        "for name in koopfast.__all__: getattr(koopfast, name)\n"
        "print(*(set(sys.modules) - torch_brings))"
    )
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    ).stdout.split()
    assert "koopfast.trainer" in modules
    assert not {"matplotlib", "jinja2", "tqdm"} & set(modules)


def test_public_names_are_listed_and_others_refused() -> None:
    assert set(koopfast.__all__) <= set(dir(koopfast))
    with pytest.raises(AttributeError, match="no attribute 'KoopmanTrainr'"):
        _ = koopfast.KoopmanTrainr  # type: ignore[attr-defined]


def test_a_source_tree_that_was_never_built_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "koopfast._native", None)
    monkeypatch.delattr(koopfast, "_native")
    with pytest.raises(koopfast.KoopfastError, match="pip install"):
        koopfast.build_info()


def test_a_compiled_part_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {**_native.build_info(), "version": "0.0.1"}
    monkeypatch.setattr(_native, "build_info", lambda: facts)
    with pytest.raises(koopfast.KoopfastError, match=r"0\.0\.1"):
        koopfast.build_info()
