# SPDX-License-Identifier: BSD-3-Clause
"""The command ``koopfast``: ``info`` and the subcommands of a table.

Written with argparse because a command of two words is no reason for a third run-time dependency
beside numpy and torch. Nothing heavy is imported before a subcommand runs.

Exit codes: 0 done, 1 an unexpected error (with its traceback), 2 wrong usage or a KoopfastError,
3 "jumps would not help" (doctor), 130 interrupted.
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

# word -> (module with add_arguments(parser) and run(options), what it does)
_COMMANDS = {
    "demo": (
        "koopfast.demo",
        "train two networks with and without Koopman jumps and write a report",
    ),
    "reproduce": (
        "koopfast.reproduce",
        "do an experiment of the Koopman training paper again and report it",
    ),
    "bench": (
        "koopfast.commands.bench",
        "what recording, fitting and predicting cost on this machine",
    ),
    "report": ("koopfast.commands.report", "the page of a run that was saved as data"),
    "inspect": ("koopfast.commands.inspect", "what a saved trainer has done, and where it stands"),
    "doctor": (
        "koopfast.commands.doctor",
        "would jumps help: fit a trajectory's beginning, predict the rest",
    ),
}
# what an extra of the package brings -> that extra
_EXTRAS = {"tqdm": "demo", "matplotlib": "plots", "jinja2": "plots"}


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
        if missing not in _EXTRAS:
            raise
        command = _command(arguments)
        extra = "demo" if command in ("demo", "reproduce") else _EXTRAS[missing]
        print(
            f"koopfast: {command} needs {missing}, which is not installed: "
            f"pip install 'koopfast[{extra}]'",
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
    how = info.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="as one JSON object")
    how.add_argument("--quiet", action="store_true", help="the versions only")
    info.set_defaults(run=_info)

    for word, (_, does) in _COMMANDS.items():
        subparser = commands.add_parser(word, help=does, description=does)
        if word == command:
            module = _module(word)
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser


def _module(command: str) -> Any:
    return importlib.import_module(_COMMANDS[command][0])


def _info(options: argparse.Namespace) -> int:
    from koopfast._build import build_info

    facts = {**dataclasses.asdict(build_info()), **_runtime()}
    if options.json:
        print(json.dumps(facts, indent=2))
        return 0
    if options.quiet:
        names = (
            ("koopfast", facts["version"]),
            ("python", facts["python"]),
            ("torch", facts["torch"]),
        )
        print(", ".join(f"{name} {version}" for name, version in names))
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
