"""Masked MLPs to train, and a plain torch loop in float64 that trains them: the truth of the trainer's tests."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pns_fast import reference

# 1 and 4 inputs more than whole vectors, which the dense path stores apart; 0, 1, 2 and 3 rows left over from fours.
WIDTHS = ((2, 33, 22, 4), (1, 7, 1), (3, 100, 100, 3), (5, 17, 5), (6, 3))
SGD = {"optimizer": "sgd", "lr": 0.05, "beta1": 0.9, "weight_decay": 5e-4}
ADAM = {"optimizer": "adam", "lr": 1e-3, "beta1": 0.9}
STEP = {"schedule": "step", "step_epochs": 2, "gamma": 0.3}


def slices(widths):
    """(weight, bias) positions of each layer in the flat layout."""
    at = 0
    for n_in, n_out in itertools.pairwise(widths):
        yield slice(at, at + n_in * n_out), slice(at + n_in * n_out, at + (n_in + 1) * n_out)
        at += (n_in + 1) * n_out


def n_parameters(widths):
    return sum((n_in + 1) * n_out for n_in, n_out in itertools.pairwise(widths))


@dataclass(frozen=True)
class Case:
    widths: tuple[int, ...]
    loss: str = "cross_entropy"
    density: float = 0.5
    n: int = 70
    batch_size: int = 32
    n_networks: int = 2
    n_datasets: int = 2
    seed: int = 0

    def arguments(self) -> tuple:
        """The positional arguments of mlp_trainer."""
        g = torch.Generator().manual_seed(self.seed)
        p = torch.cat(
            [
                torch.randn(self.n_networks, b.stop - w.start, generator=g) * (2 / n_in) ** 0.5
                for (w, b), n_in in zip(slices(self.widths), self.widths[:-1], strict=True)
            ],
            dim=1,
        )
        mask = torch.rand(p.shape, generator=g) < self.density
        n_in, n_out = self.widths[0], self.widths[-1]
        data = []
        for n in (self.n, 41):
            x = torch.rand(self.n_datasets, n, n_in, generator=g) * 2 - 1
            if self.loss == "cross_entropy":
                y = torch.randint(0, n_out, (self.n_datasets, n), generator=g)
            else:
                y = torch.randn(self.n_datasets, n, n_out, generator=g)
            data += [x, y]
        dataset = torch.arange(self.n_networks) % self.n_datasets
        keys = torch.stack([torch.arange(self.n_networks) + 5, torch.arange(self.n_networks) % 3], dim=1)
        return p, mask, list(self.widths), *data, dataset, keys

    def options(self, optimizer: dict, epochs: int) -> dict:
        return {"loss": self.loss, "batch_size": self.batch_size, "epochs": epochs, **optimizer}

    def with_(self, **changes) -> Case:
        return replace(self, **changes)


def plain_network(p: Tensor, mask: Tensor, widths) -> tuple[list[Tensor], list[Tensor]]:
    """Float64 weights and biases that torch trains, pruned ones 0, and their masks."""
    trained, masks = [], []
    for (w, b), (n_in, n_out) in zip(slices(widths), itertools.pairwise(widths), strict=True):
        for part, shape in ((w, (n_out, n_in)), (b, (n_out,))):
            masks.append(mask[part].reshape(shape))
            kept = torch.where(mask[part], p[part].double(), 0.0)
            trained.append(kept.reshape(shape).requires_grad_())
    return trained, masks


def plain_loss(trained: list[Tensor], x: Tensor, y: Tensor, loss: str) -> Tensor:
    h = x.double()
    for i in range(0, len(trained), 2):
        h = torch.nn.functional.linear(h if i == 0 else torch.relu(h), trained[i], trained[i + 1])
    if loss == "cross_entropy":
        return torch.nn.functional.cross_entropy(h, y)
    return torch.nn.functional.mse_loss(h, y.double())


def plain_gradients(p, mask, widths, x, y, loss) -> Tensor:
    """Float64 [P] gradient of one network on one batch; 0 where pruned."""
    trained, masks = plain_network(p, mask, widths)
    grads = torch.autograd.grad(plain_loss(trained, x, y, loss), trained)
    return torch.cat([(g * m).flatten() for g, m in zip(grads, masks, strict=True)])


@functools.cache
def plain_training(case: Case, optimizer: tuple, epochs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Each network by itself with torch.optim in float64: final parameters [N, P], train_loss, test_loss."""
    p, mask, widths, x, y, x_test, y_test, dataset, keys = case.arguments()
    options = dict(optimizer)
    final, train_loss, test_loss = [], [], []
    for i in range(case.n_networks):
        trained, masks = plain_network(p[i], mask[i], widths)
        d = int(dataset[i])
        if options["optimizer"] == "adam":
            betas = (options["beta1"], options.get("beta2", 0.999))
            decay = options.get("weight_decay", 0.0)
            optim = torch.optim.Adam(trained, options["lr"], betas, options.get("eps", 1e-8), weight_decay=decay)
        else:
            decay = options.get("weight_decay", 0.0)
            optim = torch.optim.SGD(trained, options["lr"], momentum=options["beta1"], weight_decay=decay)
        scheduler = None
        if options.get("schedule") == "cosine":
            scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optim, epochs)
        elif options.get("schedule") == "step":
            scheduler = torch.optim.lr_scheduler.StepLR(optim, options["step_epochs"], options["gamma"])
        curve, tests = [], [plain_loss(trained, x_test[d], y_test[d], case.loss).item()]
        for epoch in range(epochs):
            total = 0.0
            order = torch.from_numpy(reference.batch_order(case.n, tuple(keys[i].tolist()), epoch))
            for batch in order.split(case.batch_size):
                value = plain_loss(trained, x[d][batch], y[d][batch], case.loss)
                for t, g, m in zip(trained, torch.autograd.grad(value, trained), masks, strict=True):
                    t.grad = g * m
                optim.step()
                total += value.item() * len(batch)
            curve.append(total / case.n)
            tests.append(plain_loss(trained, x_test[d], y_test[d], case.loss).item())
            if scheduler is not None:
                scheduler.step()
        flat = torch.cat([t.detach().flatten() for t in trained])
        final.append(torch.where(mask[i], flat, p[i].double()))
        train_loss.append(curve)
        test_loss.append(tests)
    return (
        torch.stack(final),
        torch.tensor(train_loss, dtype=torch.float64),
        torch.tensor(test_loss, dtype=torch.float64),
    )
