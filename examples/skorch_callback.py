# SPDX-License-Identifier: BSD-3-Clause
"""Koopman training in a skorch net: one callback more."""

import torch
from skorch import NeuralNetRegressor

from koopfast.integrations import SkorchKoopman

x = torch.linspace(-3, 3, 64).unsqueeze(1)
net = NeuralNetRegressor(
    torch.nn.Sequential(torch.nn.Linear(1, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)),
    optimizer=torch.optim.Adam,
    lr=1e-3,
    max_epochs=100,
    train_split=None,
    verbose=0,
    callbacks=[("koopman", SkorchKoopman(window=8, stride=4))],
)
net.fit(x, x.sin())
print(dict(net.callbacks_)["koopman"].trainer.history.summary())
