# SPDX-License-Identifier: BSD-3-Clause
"""Koopman training in a transformers Trainer: one callback more (a tiny random model here)."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from koopfast.integrations import TransformersKoopman

torch.manual_seed(0)
model = GPT2LMHeadModel(
    GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=32, n_positions=16, bos_token_id=0)
)
rows = [{"input_ids": (ids := torch.arange(12) * k % 32), "labels": ids} for k in range(1, 9)]
koopman = TransformersKoopman(window=8, stride=2)
arguments = TrainingArguments(
    "out/transformers",
    max_steps=80,
    per_device_train_batch_size=8,
    use_cpu=True,
    report_to=[],
    save_strategy="no",
    disable_tqdm=True,
)
Trainer(model, arguments, train_dataset=rows, callbacks=[koopman]).train()
print(koopman.trainer.history.summary())
