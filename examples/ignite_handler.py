# SPDX-License-Identifier: BSD-3-Clause
"""Koopman training in an ignite engine: one handler more."""

import torch
from ignite.engine import create_supervised_trainer

from koopfast.integrations import IgniteKoopman

model = torch.nn.Sequential(torch.nn.Linear(1, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
optimizer, loss_fn = torch.optim.Adam(model.parameters(), lr=1e-3), torch.nn.MSELoss()
engine = create_supervised_trainer(model, optimizer, loss_fn)


def loss(engine):
    x, y = engine.state.batch
    return loss_fn(model(x), y)


koopman = IgniteKoopman(model, optimizer, loss, window=8, stride=4)
koopman.attach(engine)
x = torch.linspace(-3, 3, 64).unsqueeze(1)
engine.run([(x, x.sin())], max_epochs=100)
print(koopman.trainer.history.summary())
