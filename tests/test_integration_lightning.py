# SPDX-License-Identifier: BSD-3-Clause
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from integration_runs import FAST, data, example, network, weights
from koopfast import ConfigError

pytest.importorskip("lightning")
pytestmark = [
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


def task(**kwargs: Any) -> Any:
    from lightning.pytorch import LightningModule
    from torchmetrics import MeanMetric

    class Task(LightningModule):
        automatic_optimization = kwargs.get("automatic", True)

        def __init__(self) -> None:
            super().__init__()
            self.net = network()
            self.mean = MeanMetric()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x, y = batch
            loss = nn.functional.mse_loss(self.net(x), y)
            self.mean.update(loss.detach())
            self.log("loss", loss)
            return {"loss": loss}

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=1e-2)

    return Task()


def fitted(
    module: Any, koopman: Any, folder: Path, ckpt: Path | None = None, rows: int = 32, **kwargs: Any
) -> Any:
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    saving = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=9, save_top_k=-1)
    trainer = Trainer(
        callbacks=[koopman, saving],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 30, **kwargs},
    )
    x, y = data()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=rows)
    trainer.fit(module, loader, ckpt_path=ckpt)
    return trainer


def test_the_example_jumps() -> None:
    assert example("lightning_callback.py")["koopman"].trainer.history.counters.jumps_accepted > 0


def test_resumed_from_lightnings_checkpoint_in_mid_window_the_run_is_the_same(
    tmp_path: Path,
) -> None:
    from koopfast.integrations import LightningKoopman

    whole, koopman = task(), LightningKoopman(**FAST)
    fitted(whole, koopman, tmp_path)
    assert [jump.step for jump in koopman.trainer.history.jumps] == [12, 24]

    resumed, again = task(), LightningKoopman(**FAST)
    fitted(resumed, again, tmp_path, tmp_path / "step=9.ckpt")
    assert [jump.step for jump in again.trainer.history.jumps] == [12, 24]
    assert torch.equal(weights(resumed), weights(whole))


def test_the_probe_is_not_logged_and_counts_in_no_metric(tmp_path: Path) -> None:
    from koopfast.integrations import LightningKoopman

    module, koopman = task(), LightningKoopman(**FAST)
    trainer = fitted(module, koopman, tmp_path, max_epochs=12)
    record = koopman.trainer.history.jumps[0]
    assert record.accepted
    assert module.mean._update_count == 12
    # What the 12th step saw before it was taken, not what a candidate gave.
    assert float(trainer.callback_metrics["loss"]) > record.loss_before  # type: ignore[operator]
    assert "log" not in vars(module)


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    from koopfast.integrations import LightningKoopman

    koopman = LightningKoopman(**FAST)
    fitted(task(), koopman, tmp_path, max_epochs=10, rows=16, accumulate_grad_batches=2)
    assert koopman.trainer.history.counters.optimizer_steps == 10


def test_manual_optimization_needs_a_loss_of_ones_own(tmp_path: Path) -> None:
    from koopfast.integrations import LightningKoopman

    with pytest.raises(ConfigError, match="with manual optimization training_step steps"):
        fitted(task(automatic=False), LightningKoopman(**FAST), tmp_path)
    with pytest.raises(ConfigError, match="optimizer: expected one of the 1 "):
        fitted(task(), LightningKoopman(**FAST, optimizer=1), tmp_path)
