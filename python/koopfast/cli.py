# SPDX-License-Identifier: BSD-3-Clause
"""The command ``koopfast``: ``info``, ``demo`` and ``reproduce``.

Written with argparse because a command of two words is no reason for a third run-time dependency
beside numpy and torch. Nothing heavy is imported before a subcommand runs.

Exit codes: 0 done, 1 an unexpected error (with its traceback), 2 wrong usage or a KoopfastError,
130 interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from koopfast.errors import KoopfastError

__all__ = ["main"]

_DEMO_MODULES = {"tqdm", "matplotlib", "jinja2"}  # what the extra "demo" adds


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own) and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        options = _parser(_command(arguments)).parse_args(arguments)
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except KoopfastError as error:
        print(f"koopfast: {error}", file=sys.stderr)
        return 2
    except importlib.metadata.PackageNotFoundError as error:
        if error.name != "koopfast":
            raise
        print(
            "koopfast: the package's metadata is missing: this is a source tree that was never "
            "installed: pip install .",
            file=sys.stderr,
        )
        return 2
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _DEMO_MODULES:
            raise
        print(
            f"koopfast: this command needs {missing}, which is not installed: "
            "pip install 'koopfast[demo]'",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("koopfast: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, say 'head', has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _command(arguments: Sequence[str]) -> str | None:
    """The subcommand in ``arguments``; no option before it takes a value."""
    return next((argument for argument in arguments if not argument.startswith("-")), None)


class _Version(argparse.Action):
    """Asks for the version only when it is to be shown: a source tree has none."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        print(f"koopfast {importlib.metadata.version('koopfast')}")
        parser.exit()


def _parser(command: str | None) -> argparse.ArgumentParser:
    """The whole parser; of the subcommands' own arguments only those of ``command``."""
    parser = argparse.ArgumentParser(
        prog="koopfast",
        description="Koopman training for PyTorch: predict the weights many steps ahead.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(metavar="command", required=True)

    info = commands.add_parser(
        "info", help="versions, compiler, instruction set, threads, CUDA and devices"
    )
    info.add_argument("--json", action="store_true", help="as one JSON object")
    info.set_defaults(run=_info)

    demo = commands.add_parser(
        "demo", help="train two networks with and without Koopman jumps and write a report"
    )
    demo.set_defaults(run=_demo)
    if command == "demo":
        _module("demo").add_arguments(demo)

    reproduce = commands.add_parser(
        "reproduce", help="do an experiment of the Koopman training paper again and report it"
    )
    reproduce.set_defaults(run=_reproduce)
    if command == "reproduce":
        _module("reproduce").add_arguments(reproduce)
    return parser


def _demo(options: argparse.Namespace) -> int:
    code: int = _module("demo").run(options)
    return code


def _reproduce(options: argparse.Namespace) -> int:
    code: int = _module("reproduce").run(options)
    return code


def _module(name: str) -> Any:
    return importlib.import_module(f"koopfast.{name}")


def _info(options: argparse.Namespace) -> int:
    from koopfast._build import build_info

    facts = {**dataclasses.asdict(build_info()), **_runtime()}
    if options.json:
        print(json.dumps(facts, indent=2))
        return 0
    cuda = "not compiled in"
    if facts["cuda"]:
        cuda = f"{facts['cuda_version']} for {' '.join(facts['cuda_architectures'])}"
    rows = [
        ("koopfast", facts["version"]),
        ("python", facts["python"]),
        ("torch", facts["torch"]),
        ("numpy", facts["numpy"]),
        ("compiler", f"{facts['compiler']}, {facts['build_type']}"),
        ("Eigen", f"{facts['eigen_version']} from {facts['eigen_dir']}"),
        ("instruction set", facts["isa"]),
        ("OpenMP", f"yes, {facts['max_threads']} threads" if facts["openmp"] else "no"),
        ("torch threads", facts["torch_threads"]),
        ("processors", facts["processors"]),
        ("CUDA kernels", cuda),
        ("devices", ", ".join(facts["devices"])),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    return 0


def _runtime() -> dict[str, Any]:
    """What depends on this process and machine: threads and the devices torch can use."""
    import torch

    devices = ["cpu"]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(index)
            devices.append(f"cuda:{index} {torch.cuda.get_device_name(index)} ({major}.{minor})")
    return {
        "torch_threads": torch.get_num_threads(),
        "processors": os.cpu_count(),
        "devices": devices,
    }
