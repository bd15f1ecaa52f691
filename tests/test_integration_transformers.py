# SPDX-License-Identifier: BSD-3-Clause
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from integration_runs import FAST, example, weights
from koopfast import ConfigError, KoopmanWarning

pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def trained(folder: Path, koopman: Any, resume: Path | None = None, **kwargs: Any) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8, bos_token_id=0, eos_token_id=0
    )
    rows = [{"input_ids": (ids := torch.arange(8) * k % 16), "labels": ids} for k in range(1, 9)]
    arguments = TrainingArguments(
        str(folder),
        **{
            "max_steps": 30,
            "save_steps": 9,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": 4,
            "use_cpu": True,
            "report_to": [],
            "disable_tqdm": True,
            "logging_strategy": "no",
            **kwargs,
        },
    )
    model = GPT2LMHeadModel(config)
    trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[koopman])
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return model


def test_the_example_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    koopman = example("transformers_callback.py")["koopman"]
    assert koopman.trainer.history.counters.jumps_accepted > 0


def test_resumed_in_mid_window_a_run_with_dropout_is_the_same(tmp_path: Path) -> None:
    from koopfast.integrations import TransformersKoopman

    koopman, again = TransformersKoopman(**FAST), TransformersKoopman(**FAST)
    whole = trained(tmp_path, koopman)
    resumed = trained(tmp_path, again, tmp_path / "checkpoint-9")
    assert [jump.step for jump in koopman.trainer.history.jumps] == [12, 24]
    assert again.trainer.history.jumps[0].candidates == koopman.trainer.history.jumps[0].candidates
    assert torch.equal(weights(resumed), weights(whole))


def test_resumed_from_elsewhere_the_window_is_found_there_or_begins_anew(tmp_path: Path) -> None:
    from koopfast.integrations import TransformersKoopman

    here, there = tmp_path / "here", tmp_path / "there"
    trained(here, TransformersKoopman(**FAST), max_steps=9)
    folder = here / "checkpoint-9"
    with pytest.warns(KoopmanWarning, match="window begins anew"):
        trained(there, koopman := TransformersKoopman(**FAST), folder, max_steps=10)
    assert koopman.trainer.history.counters.optimizer_steps == 1
    koopman = TransformersKoopman(**FAST, resume_from=folder)
    trained(there, koopman, folder, max_steps=10)
    assert koopman.trainer.history.counters.optimizer_steps == 10
    with pytest.raises(ConfigError, match=r"resume_from: there is no koopman\.pt"):
        trained(there, TransformersKoopman(**FAST, resume_from=there), folder, max_steps=10)


def test_the_linear_decay_that_is_the_default_splits_no_window(tmp_path: Path) -> None:
    from koopfast.integrations import TransformersKoopman

    koopman = TransformersKoopman(**FAST)
    trained(tmp_path, koopman, max_steps=36, lr_scheduler_type="linear")
    assert koopman.trainer.history.counters.windows_split == 0
    assert [jump.step for jump in koopman.trainer.history.jumps] == [12, 24, 36]


def test_a_loss_of_ones_own_is_the_probe_and_accumulation_is_one_step(tmp_path: Path) -> None:
    from koopfast.integrations import TransformersKoopman

    losses = iter([2.0, 1.0, *[3.0] * 20])
    koopman = TransformersKoopman(**FAST, loss=lambda model: next(losses))
    trained(tmp_path, koopman, max_steps=12, gradient_accumulation_steps=2)
    (record,) = koopman.trainer.history.jumps
    assert (record.loss_before, record.loss_after) == (2.0, 1.0)
