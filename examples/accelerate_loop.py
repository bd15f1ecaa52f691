# SPDX-License-Identifier: BSD-3-Clause
"""Koopman training in an accelerate loop: one call more; save_state and load_state know it."""

import torch
from accelerate import Accelerator

from koopfast.integrations import accelerated_trainer

accelerator = Accelerator(cpu=True)
model = torch.nn.Sequential(torch.nn.Linear(1, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
model, optimizer = accelerator.prepare(model, torch.optim.Adam(model.parameters(), lr=1e-3))
x = torch.linspace(-3, 3, 64).unsqueeze(1)
loss = lambda: torch.nn.functional.mse_loss(model(x), x.sin())  # noqa: E731
koopman = accelerated_trainer(accelerator, model, optimizer, probe=loss, window=8, stride=4)
for _ in range(100):
    optimizer.zero_grad()
    accelerator.backward(loss())
    optimizer.step()
print(koopman.history.summary())
