"""Twin of ops.mlp_trainer: one network after the other, plain autograd and torch.optim on masked parameters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .batch_order import batch_order
from .topk_mask import keep_count, topk_mask


def layer_slices(widths: Sequence[int]) -> list[tuple[slice, slice, tuple[int, int]]]:
    """Where weight and bias of each layer lie in the flat layout [W1 | b1 | W2 | b2 ...]: (weights, bias, (O, I))."""
    slices, at = [], 0
    for n_in, n_out in itertools.pairwise(widths):
        w = slice(at, at + n_out * n_in)
        b = slice(w.stop, w.stop + n_out)
        slices.append((w, b, (n_out, n_in)))
        at = b.stop
    return slices


def forward(theta: Tensor, x: Tensor, widths: Sequence[int]) -> Tensor:
    """The MLP with flat parameters ``theta`` [P] on ``x`` [B, n_0]: ReLU between layers, none at the end."""
    slices = layer_slices(widths)
    for l, (w, b, shape) in enumerate(slices):
        x = torch.nn.functional.linear(x, theta[w].reshape(shape), theta[b])
        if l < len(slices) - 1:
            x = torch.relu(x)
    return x


def batch_loss(output: Tensor, y: Tensor, loss: str) -> Tensor:
    """Mean cross-entropy over the batch, or mean squared error over batch and outputs."""
    if loss == "cross_entropy":
        return torch.nn.functional.cross_entropy(output, y)
    return torch.nn.functional.mse_loss(output, y)


def metric_of(output: Tensor, y: Tensor, loss: str) -> float:
    """Accuracy, or the MSE after the least-squares factor for each output."""
    if loss == "cross_entropy":
        return (output.argmax(1) == y).double().mean().item()
    output, y = output.double(), y.double()
    norm = (output * output).sum(0)
    factor = torch.where(norm > 0, (output * y).sum(0) / norm.clamp_min(1e-300), 0.0)
    return ((output * factor - y) ** 2).mean().item()


def mlp_gradients(
    parameters: Tensor,
    mask: Tensor,
    widths: Sequence[int],
    x: Tensor,
    y: Tensor,
    dataset: Tensor,
    *,
    loss: str,
    dense_from: float | None = None,
) -> Tensor:
    """See :func:`pns_fast.ops.mlp_gradients`. ``dense_from`` has no meaning here: everything is dense."""
    grads = torch.zeros_like(parameters)
    for i in range(len(parameters)):
        theta = (parameters[i] * mask[i]).requires_grad_()
        d = int(dataset[i])
        value = batch_loss(forward(theta, x[d].to(theta.dtype), widths), _as(y[d], theta), loss)
        grads[i] = torch.autograd.grad(value, theta)[0] * mask[i]
    return grads


def _as(y: Tensor, like: Tensor) -> Tensor:
    return y.to(like.dtype) if y.is_floating_point() else y


def _optimizer(p: Tensor, optimizer: str, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float):
    if optimizer == "adam":
        return torch.optim.Adam([p], lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay)
    return torch.optim.SGD([p], lr=lr, momentum=beta1, weight_decay=weight_decay)


def learning_rate(lr: float, schedule: str, epoch: int, epochs: int, step_epochs: int, gamma: float) -> float:
    if schedule == "step":
        return lr * gamma ** (epoch // step_epochs)
    return lr if schedule == "constant" else lr * 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def edge_popup_mask(scores: Tensor, widths: Sequence[int], density: float) -> Tensor:
    """Top ``density`` of |scores| [P], weights and biases of each layer apart; NaN ranks lowest."""
    magnitude = torch.where(scores.isnan(), -1.0, scores.abs())
    mask = torch.zeros_like(scores, dtype=torch.bool)
    for w, b, _ in layer_slices(widths):
        for part in (w, b):
            mask[part] = topk_mask(magnitude[part], keep_count(density, part.stop - part.start))
    return mask


def mlp_trainer(
    parameters: Tensor,
    mask: Tensor,
    widths: Sequence[int],
    x_train: Tensor,
    y_train: Tensor,
    x_test: Tensor,
    y_test: Tensor,
    dataset: Tensor,
    keys: Tensor,
    *,
    loss: str,
    epochs: int,
    batch_size: int,
    optimizer: str,
    lr: float,
    beta1: float,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    schedule: str = "constant",
    scores: Tensor | None = None,
    density: float = 1.0,
    anneal: bool = False,
    dense_from: float | None = None,
    step_epochs: int = 30,
    gamma: float = 0.1,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See :func:`pns_fast.ops.mlp_trainer`. ``dense_from`` has no meaning here: everything is dense.

    ``progress`` is called before every network and at the end.
    """
    n_networks, dtype = len(parameters), parameters.dtype
    out_parameters, out_mask = parameters.clone(), mask.clone()
    out_scores = torch.empty(0, dtype=dtype) if scores is None else scores.clone()
    train_loss = torch.zeros(n_networks, epochs, dtype=torch.float64)
    test_loss = torch.zeros(n_networks, epochs + 1, dtype=torch.float64)
    metric = torch.zeros(n_networks, epochs + 1, dtype=torch.float64)
    report = progress or (lambda done, total: None)
    for i in range(n_networks):
        report(i * epochs, n_networks * epochs)
        d = int(dataset[i])
        x, y, xt, yt = (
            x_train[d].to(dtype),
            _as(y_train[d], parameters),
            x_test[d].to(dtype),
            _as(y_test[d], parameters),
        )
        theta0 = parameters[i].clone()
        # what the optimiser moves: the kept parameters, or all scores
        trained = (theta0 * mask[i] if scores is None else scores[i].clone()).requires_grad_()
        opt = _optimizer(trained, optimizer, lr, beta1, beta2, eps, weight_decay)

        def effective(epoch, i=i, theta0=theta0, trained=trained):
            if scores is None:
                return trained * mask[i], mask[i]
            rho = density ** ((epoch + 1) / epochs) if anneal and epochs > 0 else density
            kept = edge_popup_mask(trained.detach(), widths, rho)
            # straight through |s|: the value is theta0 * kept, the gradient to every score is
            # dL/dw_eff * w * sign(s), with sign(0) = 1, or bias scores would stay at zero
            sign = torch.where(trained.detach() < 0, -1.0, 1.0).to(dtype)
            return theta0 * kept + (trained - trained.detach()) * sign * theta0, kept

        def evaluate(column, epoch, i=i, xt=xt, yt=yt, effective=effective):
            with torch.no_grad():
                output = forward(effective(epoch)[0], xt, widths)
            test_loss[i, column] = batch_loss(output.double(), _as(yt, test_loss), loss)
            metric[i, column] = metric_of(output, yt, loss)

        evaluate(0, 0)
        for epoch in range(epochs):
            opt.param_groups[0]["lr"] = learning_rate(lr, schedule, epoch, epochs, step_epochs, gamma)
            order = torch.from_numpy(batch_order(len(x), tuple(keys[i].tolist()), epoch))
            for batch in order.split(batch_size):
                value = batch_loss(forward(effective(epoch)[0], x[batch], widths), y[batch], loss)
                trained.grad = torch.autograd.grad(value, trained)[0]
                if scores is None:
                    trained.grad *= mask[i]
                opt.step()
                train_loss[i, epoch] += value.item() * len(batch) / len(x)
            if not math.isfinite(train_loss[i, epoch]):  # stop: nothing after this epoch
                train_loss[i, epoch + 1 :] = test_loss[i, epoch + 1 :] = metric[i, epoch + 1 :] = math.nan
                break
            evaluate(epoch + 1, epoch)
        if scores is None:
            out_parameters[i] = torch.where(mask[i], trained.detach(), theta0)
        else:
            out_scores[i] = trained.detach()
            out_mask[i] = effective(max(epochs - 1, 0))[1]
    report(n_networks * epochs, n_networks * epochs)
    return out_parameters, out_scores, out_mask, train_loss, test_loss, metric
