# SPDX-License-Identifier: BSD-3-Clause
"""Ways to train: the optimizer alone, and with what others would do.

A gradient evaluation is one forward and one backward pass over a batch. A forward pass over as many
samples is a third of it, as the backward pass of a network costs twice its forward pass.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from koopfast.controller import FORWARD
from koopfast.demo.tasks import Task

MakeOptimizer = Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]


class Method:
    """A training under way.

    Attributes:
        cost: gradient evaluations so far.
        steps: optimizer steps so far.
        jumped: the steps at which it last left the optimizer's own path, in the order they came.
    """

    full_batch_only = False

    def __init__(self, task: Task, seed: int, make_optimizer: MakeOptimizer) -> None:
        self.task = task
        self.model = task.build(seed)
        self.optimizer = make_optimizer(self.model.parameters())
        self.cost = 0.0
        self.steps = 0
        self.jumped: list[int] = []

    def advance(self) -> None:
        """One optimizer step, and what the method does after it."""
        self.optimizer.zero_grad()
        self.task.loss(self.model, self.steps).backward()
        self.optimizer.step()
        self.steps += 1
        self.cost += 1
        self.after_step()

    def after_step(self) -> None:
        """What the method does after an optimizer step."""

    def scored(self) -> nn.Module:
        """The network whose loss counts."""
        return self.model

    def probe(self) -> float:
        self.cost += FORWARD
        with torch.no_grad():
            return self.task.probe(self.model).item()


class Plain(Method):
    """The optimizer alone."""


class Ema(Method):
    """Exponential moving average of the weights, scored instead of them."""

    def __init__(self, task: Task, seed: int, make_optimizer: MakeOptimizer) -> None:
        super().__init__(task, seed, make_optimizer)
        # torch's average of the first steps is the first weights: a run of hundreds of steps needs
        # a memory of tens.
        decay = max(0.9, 1 - 20 / task.steps)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(decay))

    def after_step(self) -> None:
        self.average.update_parameters(self.model)

    def scored(self) -> nn.Module:
        return self.average.module


class Swa(Method):
    """Equal average of the weights of the last quarter of training (Izmailov et al. 2018)."""

    def __init__(self, task: Task, seed: int, make_optimizer: MakeOptimizer) -> None:
        super().__init__(task, seed, make_optimizer)
        self.average = AveragedModel(self.model)
        self.start = 3 * task.steps // 4

    def after_step(self) -> None:
        if self.steps > self.start and self.steps % 5 == 0:
            self.average.update_parameters(self.model)

    def scored(self) -> nn.Module:
        return self.average.module if self.average.n_averaged > 0 else self.model


class Lookahead(Method):
    """Lookahead (Zhang et al. 2019) of pytorch-optimizer, k = 5, alpha = 0.5."""

    def __init__(self, task: Task, seed: int, make_optimizer: MakeOptimizer) -> None:
        from pytorch_optimizer import Lookahead as Wrapper

        super().__init__(task, seed, make_optimizer)
        self.optimizer = Wrapper(self.optimizer, k=5, alpha=0.5, pullback_momentum="none")


class _Safeguarded(Method):
    """Offers weights now and then, which are kept only if the probe's loss goes down."""

    def offer(self, candidates: list[Tensor]) -> None:
        now = parameters_to_vector(self.model.parameters()).detach().clone()
        best, weights = self.probe(), now
        for candidate in candidates:
            vector_to_parameters(candidate, self.model.parameters())
            loss = self.probe()
            if not loss < best:
                break
            best, weights = loss, candidate
        vector_to_parameters(weights, self.model.parameters())
        if weights is not now:
            self.jumped.append(self.steps)


class Anderson(_Safeguarded):
    """Type-II Anderson acceleration (Walker & Ni 2011) of the optimizer's step, every tenth step.

    With g_i = G(w_i) and f_i = g_i - w_i over the last steps, w+ = sum_i alpha_i g_i where alpha
    minimises |sum_i alpha_i f_i| and sums to 1.
    """

    depth = 10

    def __init__(self, task: Task, seed: int, make_optimizer: MakeOptimizer) -> None:
        super().__init__(task, seed, make_optimizer)
        self.path: deque[Tensor] = deque(maxlen=self.depth + 1)

    def after_step(self) -> None:
        self.path.append(parameters_to_vector(self.model.parameters()).detach().double())
        if self.steps % self.depth or len(self.path) <= self.depth:
            return
        w = torch.stack(list(self.path))
        images, residuals = w[1:], w[1:] - w[:-1]
        differences = (residuals[1:] - residuals[:-1]).T
        if not w.isfinite().all():
            return  # the run has diverged
        gamma = torch.linalg.lstsq(differences, residuals[-1]).solution
        offered = images[-1] - (images[1:] - images[:-1]).T @ gamma
        self.offer([offered.to(next(self.model.parameters()).dtype)])
        self.path.clear()


class Linear(_Safeguarded):
    """Straight on: from two snapshots 31 x 4 steps apart, as far as the probe's loss goes down."""

    span = 124

    def __init__(self, task: Task, seed: int, make_optimizer: MakeOptimizer) -> None:
        super().__init__(task, seed, make_optimizer)
        self.start = parameters_to_vector(self.model.parameters()).detach().clone()

    def after_step(self) -> None:
        if self.steps % self.span:
            return
        now = parameters_to_vector(self.model.parameters()).detach().clone()
        move = now - self.start
        self.offer([now + 2.0**k * move for k in range(-2, 9)])
        self.start = parameters_to_vector(self.model.parameters()).detach().clone()


class Lbfgs(Method):
    """L-BFGS with a strong Wolfe line search; every evaluation of its closure is a gradient."""

    full_batch_only = True

    def __init__(self, task: Task, seed: int, make_optimizer: MakeOptimizer) -> None:
        super().__init__(task, seed, make_optimizer)
        self.optimizer = torch.optim.LBFGS(
            self.model.parameters(), max_iter=1, history_size=20, line_search_fn="strong_wolfe"
        )

    def advance(self) -> None:
        def closure() -> Tensor:
            self.optimizer.zero_grad()
            loss = self.task.loss(self.model, self.steps)
            loss.backward()
            self.cost += 1
            return loss

        self.optimizer.step(closure)
        self.steps += 1


PEERS: dict[str, type[Method]] = {
    "plain": Plain,
    "EMA": Ema,
    "SWA": Swa,
    "Lookahead": Lookahead,
    "Anderson": Anderson,
    "linear": Linear,
    "L-BFGS": Lbfgs,
}
