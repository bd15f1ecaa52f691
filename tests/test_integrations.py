# SPDX-License-Identifier: BSD-3-Clause
"""Frameworks are imported when they are asked for, and a missing one is named."""

from __future__ import annotations

import subprocess
import sys

import pytest

from koopfast import KoopfastError, integrations


def test_koopfast_and_its_integrations_import_no_framework() -> None:
    code = (
        "import sys, koopfast, koopfast.integrations, koopfast.optimizer, koopfast.loggers\n"
        "frameworks = {'lightning', 'transformers', 'accelerate', 'ignite', 'skorch',\n"
        "              'wandb', 'tensorboard', 'matplotlib'}\n"
        "sys.exit(str(frameworks & set(sys.modules)) if frameworks & set(sys.modules) else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", integrations.__all__)
def test_a_framework_that_is_missing_is_named_with_its_extra(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = integrations._HOME[name]
    monkeypatch.setitem(sys.modules, home, None)
    for module in list(sys.modules):
        if module.startswith((f"{home}.", f"koopfast.integrations.{home}")):
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(vars(integrations), name, raising=False)
    with pytest.raises(KoopfastError, match=rf"{name} needs .*koopfast\[{home}\]"):
        getattr(integrations, name)


def test_the_modules_with_public_names_come_when_they_are_asked_for() -> None:
    code = "import koopfast; koopfast.loggers.JsonlLogger, koopfast.checkpoint.Stateful"
    subprocess.run([sys.executable, "-c", f"{code}; koopfast.integrations.__all__"], check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="KerasKoopman"):
        integrations.KerasKoopman  # noqa: B018
