"""The training loop of modules: plain torch, the order of batches from the seed, one curve entry an epoch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import rng
from ..ops._library import check_callback
from ..pruners.checks import check_count
from ..tasks import augmented
from .datasets import FIELDS, infer_loss, is_data
from .optimizers import SGD, Adam

_TEST_BATCH = 500


@dataclass
class Curves:
    """What a training leaves besides parameters."""

    train_loss: list[float] = field(default_factory=list)  # an epoch each: mean over its samples as they were trained
    test_loss: list[float] = field(default_factory=list)  # the first before training
    metric: list[float] = field(default_factory=list)  # test accuracy, or the mean squared error

    def tensors(self, epochs: int) -> tuple[Tensor, Tensor, Tensor]:
        """As float64, NaN where an epoch did not run because the training diverged."""
        wanted = ((self.train_loss, epochs), (self.test_loss, epochs + 1), (self.metric, epochs + 1))
        padded = [values + [math.nan] * (n - len(values)) for values, n in wanted]
        return tuple(torch.tensor(values, dtype=torch.float64, device="cpu") for values in padded)


@dataclass(frozen=True)
class ModuleData:
    """Checked samples on the module's device."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    loss: str
    augments: bool

    def loss_fn(self, output: Tensor, y: Tensor) -> Tensor:
        """The mean loss over samples."""
        if self.loss == "cross_entropy":
            return F.cross_entropy(output, y)
        if output.shape != y.shape:  # torch would broadcast [n, 1] against [n] to [n, n]
            raise ValueError(f"data y: expected {list(output.shape)} like the model's output, got {list(y.shape)}")
        return F.mse_loss(output, y)


def module_data(data: Any, model: nn.Module, loss: str | None) -> ModuleData:
    """``data`` checked and moved to the device of the model's parameters."""
    if not is_data(data):
        raise TypeError(f"data: expected one with {', '.join(FIELDS)}, got {type(data).__name__}")
    for part in ("train", "test"):
        x, y = getattr(data, f"x_{part}"), getattr(data, f"y_{part}")
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            raise TypeError(f"data: expected tensors x_{part} and y_{part}")
        if len(x) != len(y) or len(x) == 0:
            raise ValueError(f"data: expected as many x_{part} as y_{part}, at least one, got {len(x)} and {len(y)}")
    loss = infer_loss(data.y_train, loss)
    for part in ("train", "test"):
        dtype = getattr(data, f"y_{part}").dtype
        if loss == "mse" and not dtype.is_floating_point:
            raise TypeError(
                f"data y_{part}: loss 'mse' expects floating point (int64 labels: 'cross_entropy'), got {dtype}"
            )
    if (parameter := next(model.parameters(), None)) is None:
        raise ValueError("model: expected parameters to train, found none")
    tensors = {f: getattr(data, f).to(parameter.device) for f in FIELDS}
    return ModuleData(**tensors, loss=loss, augments=bool(getattr(data, "augments", False)))


def torch_optimizer(settings: Adam | SGD, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The torch optimiser that ``settings`` describe."""
    if isinstance(settings, Adam):
        betas = (settings.beta1, settings.beta2)
        return torch.optim.Adam(
            parameters, settings.lr, betas=betas, eps=settings.eps, weight_decay=settings.weight_decay
        )
    if isinstance(settings, SGD):
        return torch.optim.SGD(parameters, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
    raise TypeError(f"optimizer: expected an Adam or an SGD, got {type(settings).__name__}")


def learning_rate(settings: Adam | SGD, epoch: int, epochs: int) -> float:
    """That of epoch ``epoch`` (from 0) of ``epochs``, by the optimiser's schedule."""
    if settings.schedule == "cosine":
        return settings.lr * (1 + math.cos(math.pi * epoch / epochs)) / 2
    if settings.schedule == "step":
        return settings.lr * settings.gamma ** (epoch // settings.step_epochs)
    return settings.lr


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: Adam | SGD,
    data: ModuleData,
    epochs: int,
    batch_size: int,
    seed: int,
    progress: Callable[[int, int], object] | None,
    before_epoch: Callable[[int], object] = lambda epoch: None,
) -> Curves:
    """Train what ``optimizer`` holds, in place. An epoch whose mean loss is not finite is the last one.

    Args:
        model: gets batches of ``data``; in training mode while it trains.
        optimizer: made of ``settings``.
        settings: of the learning rate by epochs.
        data: see :func:`module_data`.
        epochs, batch_size: at least 0, at least 1.
        seed: of the batches' order and of augmentation.
        progress: called as ``progress(epochs done, epochs)`` after each.
        before_epoch: called with the number of the epoch, from 0.
    """
    epochs, batch_size = check_count("epochs", epochs, 0), check_count("batch_size", batch_size, 1)
    check_callback("progress", progress)
    if epochs and not any(p.requires_grad for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("model: expected parameters that want gradients, found none")
    curves = Curves()
    _test(model, data, curves)
    for epoch in range(epochs):
        before_epoch(epoch)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, epoch, epochs)
        curves.train_loss.append(_epoch(model, optimizer, data, batch_size, seed, epoch))
        if not math.isfinite(curves.train_loss[-1]):
            break
        _test(model, data, curves)
        if progress is not None:
            progress(epoch + 1, epochs)
    return curves


@torch.enable_grad()  # wherever the caller is, as the native trainer
def _epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: ModuleData, batch_size: int, seed: int, epoch: int
) -> float:
    n, x = len(data.x_train), data.x_train
    key = rng.network_keys(seed, 1)[0][0], epoch
    order = torch.from_numpy(rng.generator(key, "module_batches").permutation(n))
    total = torch.zeros((), dtype=torch.float64, device=x.device)  # read once: a look a step would wait for a GPU
    model.train()
    for index in order.split(batch_size):
        batch = augmented(x, seed, epoch, index) if data.augments else x[index]
        optimizer.zero_grad(set_to_none=True)
        loss = data.loss_fn(model(batch), data.y_train[index])
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(index)
    return float(total) / n


def _test(model: nn.Module, data: ModuleData, curves: Curves) -> None:
    loss, metric = evaluate(model, data)
    curves.test_loss.append(loss)
    curves.metric.append(metric)


@torch.no_grad()
def evaluate(model: nn.Module, data: ModuleData) -> tuple[float, float]:
    """Mean loss and accuracy (or mean squared error) on the test split, in evaluation mode."""
    model.eval()
    total_loss, total_right = 0.0, 0
    for x, y in zip(data.x_test.split(_TEST_BATCH), data.y_test.split(_TEST_BATCH), strict=True):
        output = model(x)
        total_loss += float(data.loss_fn(output, y).double()) * len(x)
        if data.loss == "cross_entropy":
            total_right += int((output.argmax(1) == y).sum())
    n = len(data.y_test)
    loss = total_loss / n
    return loss, total_right / n if data.loss == "cross_entropy" else loss
