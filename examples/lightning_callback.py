# SPDX-License-Identifier: BSD-3-Clause
"""Koopman training in Lightning: one callback more."""

import torch
from lightning.pytorch import LightningModule, Trainer

from koopfast.integrations import LightningKoopman


class Sine(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(1, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)
        )

    def training_step(self, batch, batch_idx):
        loss = torch.nn.functional.mse_loss(self.net(batch), batch.sin())
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


x = torch.linspace(-3, 3, 64).unsqueeze(1)
koopman = LightningKoopman(window=8, stride=4)
trainer = Trainer(
    max_epochs=100,
    callbacks=[koopman],
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(Sine(), torch.utils.data.DataLoader(x, batch_size=64))
print(koopman.trainer.history.summary())
