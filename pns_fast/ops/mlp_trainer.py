"""mlp_trainer: whole trainings of many masked MLPs in one native call. ``pns_fast.train`` is its comfortable form."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar

import torch
from torch import Tensor

from .. import _native
from . import _mlp_trainer_cuda
from ._library import check_callback, check_same_device, check_shape, check_tensor, library, pointer

_OPTIONS = (
    "str loss, int epochs, int batch_size, str optimizer, float lr, float beta1, float beta2=0.999, float eps=1e-8, "
    'float weight_decay=0.0, str schedule="constant", Tensor? scores=None, float density=1.0, bool anneal=False, '
    "float? dense_from=None, int step_epochs=30, float gamma=0.1"
)
library.define(
    "mlp_trainer(Tensor parameters, Tensor mask, int[] widths, Tensor x_train, Tensor y_train, Tensor x_test, "
    f"Tensor y_test, Tensor dataset, Tensor keys, *, {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
library.define(
    "mlp_gradients(Tensor parameters, Tensor mask, int[] widths, Tensor x, Tensor y, Tensor dataset, *, str loss, "
    "float? dense_from=None) -> Tensor"
)

_MAX_WIDTH = 1 << 20

# An op's schema has no callables: the one that a call of mlp_trainer reports to travels beside it.
_progress: ContextVar[Callable[[int, int], object] | None] = ContextVar("pns_fast_mlp_trainer_progress", default=None)


@contextmanager
def _reporting_to(progress: Callable[[int, int], object] | None) -> Iterator[None]:
    token = _progress.set(progress)
    try:
        yield
    finally:
        _progress.reset(token)


def _take_progress() -> Callable[[int, int], object] | None:
    """The callback of this call; a training started inside the callback finds none."""
    progress = _progress.get()
    _progress.set(None)
    return progress


def n_parameters(widths: Sequence[int]) -> int:
    """Weights and biases of an MLP of these widths: the length P of the flat layout."""
    return sum((n_in + 1) * n_out for n_in, n_out in itertools.pairwise(widths))


def _check_one_of(name: str, value: str, accepted) -> None:
    if value not in accepted:
        raise ValueError(f"{name}: expected one of {', '.join(accepted)}, got {value!r}")


def _check_samples(name: str, x: Tensor, y: Tensor, widths: Sequence[int], loss: str, n_datasets: int | None) -> None:
    check_tensor(f"x{name}", x, (torch.float32,), (3,))
    d, n = x.shape[:2] if n_datasets is None else (n_datasets, x.shape[1])
    check_shape(f"x{name}", x, (d, n, widths[0]), "data sets, samples, inputs")
    if loss == "cross_entropy":
        check_tensor(f"y{name}", y, (torch.int64,))
        check_shape(f"y{name}", y, (d, n), "data sets, samples")
    else:
        check_tensor(f"y{name}", y, (torch.float32,))
        check_shape(f"y{name}", y, (d, n, widths[-1]), "data sets, samples, outputs")


def _check_networks(parameters: Tensor, mask: Tensor, widths: Sequence[int], dataset: Tensor, loss: str) -> None:
    if len(widths) < 2 or not all(1 <= w <= _MAX_WIDTH for w in widths):
        raise ValueError(f"widths: expected at least two widths in [1, {_MAX_WIDTH}], got {list(widths)}")
    _check_one_of("loss", loss, _native.cpu.LOSSES)
    check_tensor("parameters", parameters, (torch.float32,), (2,))
    shape = (parameters.shape[0], n_parameters(widths))
    check_shape("parameters", parameters, shape, "networks, parameters of the widths")
    check_tensor("mask", mask, (torch.bool,))
    check_shape("mask", mask, shape, "that of parameters")
    check_tensor("dataset", dataset, (torch.int64,))
    check_shape("dataset", dataset, shape[:1], "one index a network")


def _check_sizes(widths: Sequence[int], batch_size: int, name: str) -> None:
    """The kernel counts a layer's weights and its activations in 32 bits; batches are padded by up to 31."""
    padded = [-(-w // 16) * 16 for w in widths]
    if max(n_in * n_out for n_in, n_out in itertools.pairwise(padded)) >= 2**31:
        raise ValueError(f"widths: expected less than 2**31 weights in a layer, got {list(widths)}")
    if max(widths) * (batch_size + 31) >= 2**31:
        raise ValueError(f"{name}: expected widest layer x batch below 2**31, got {max(widths)} x {batch_size}")


def _check_values(y: Tensor, name: str, n_classes: int) -> None:
    """Only on real tensors: values decide, not shapes."""
    if y.dtype == torch.int64 and y.numel() > 0 and not (int(y.min()) >= 0 and int(y.max()) < n_classes):
        raise ValueError(f"{name}: expected labels in [0, {n_classes - 1}], got {int(y.min())} to {int(y.max())}")


def _check_dataset(dataset: Tensor, n_datasets: int) -> None:
    if dataset.numel() > 0 and not (int(dataset.min()) >= 0 and int(dataset.max()) < n_datasets):
        raise ValueError(f"dataset: expected indices in [0, {n_datasets - 1}], got {dataset.tolist()}")


def _check_numbers(sizes: dict[str, float], decays: dict[str, float]) -> None:
    for name, value in sizes.items():
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name}: expected a finite number >= 0, got {value}")
    for name, value in decays.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name}: expected a number in [0, 1), got {value}")


def _check(parameters, mask, widths, x_train, y_train, x_test, y_test, dataset, keys, scores, options) -> None:
    _check_networks(parameters, mask, widths, dataset, options["loss"])
    _check_samples("_train", x_train, y_train, widths, options["loss"], None)
    _check_samples("_test", x_test, y_test, widths, options["loss"], x_train.shape[0])
    check_tensor("keys", keys, (torch.int64,))
    check_shape("keys", keys, (parameters.shape[0], 2), "seed and network of each network")
    if scores is not None:
        check_tensor("scores", scores, (torch.float32,))
        check_shape("scores", scores, parameters.shape, "that of parameters")
    _check_one_of("optimizer", options["optimizer"], ("sgd", "adam"))
    _check_one_of("schedule", options["schedule"], _native.cpu.SCHEDULES)
    if options["epochs"] < 0 or options["batch_size"] < 1:
        raise ValueError(
            f"epochs, batch_size: expected >= 0 and >= 1, got {options['epochs']}, {options['batch_size']}"
        )
    _check_sizes(widths, min(options["batch_size"], x_train.shape[1]), "batch_size")
    if options["step_epochs"] < 1:
        raise ValueError(f"step_epochs: expected >= 1, got {options['step_epochs']}")
    if not 0.0 <= options["density"] <= 1.0:
        raise ValueError(f"density: expected a value in [0, 1], got {options['density']}")
    if not all(1 <= x.shape[1] < 2**31 for x in (x_train, x_test)):
        raise ValueError("x_train, x_test: expected between 1 and 2**31 - 1 samples")
    data = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    check_same_device(parameters=parameters, mask=mask, dataset=dataset, keys=keys, scores=scores, **data)


def _mlp_trainer(
    parameters,
    mask,
    widths,
    x_train,
    y_train,
    x_test,
    y_test,
    dataset,
    keys,
    *,
    loss,
    epochs,
    batch_size,
    optimizer,
    lr,
    beta1,
    beta2=0.999,
    eps=1e-8,
    weight_decay=0.0,
    schedule="constant",
    scores=None,
    density=1.0,
    anneal=False,
    dense_from=None,
    step_epochs=30,
    gamma=0.1,
):
    options = {
        "loss": loss, "epochs": epochs, "batch_size": batch_size, "optimizer": optimizer,
        "schedule": schedule, "step_epochs": step_epochs, "density": density,
    }  # fmt: skip
    _check(parameters, mask, widths, x_train, y_train, x_test, y_test, dataset, keys, scores, options)
    sizes = {"lr": lr, "eps": eps, "weight_decay": weight_decay, "gamma": gamma}
    _check_numbers(sizes, {"beta1": beta1, "beta2": beta2})
    _check_dataset(dataset, x_train.shape[0])
    _check_values(y_train, "y_train", widths[-1])
    _check_values(y_test, "y_test", widths[-1])
    if keys.numel() > 0 and not (int(keys.min()) >= 0 and int(keys[:, 1].max()) < 2**32):
        raise ValueError("keys: expected seeds in [0, 2**63 - 1] and networks in [0, 2**32 - 1]")
    tensors = {
        "parameters": parameters, "mask": mask, "scores": scores, "dataset": dataset, "keys": keys,
        "x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test,
    }  # fmt: skip
    return _run(
        tensors, list(widths), loss=loss, optimizer=optimizer, schedule=schedule, epochs=epochs, batch_size=batch_size,
        lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay, step_epochs=step_epochs, gamma=gamma,
        density=density, anneal=anneal, dense_from=dense_from,
    )  # fmt: skip


def _run(tensors: dict, widths: list[int], **options):
    """The checked arguments to the device's trainer."""
    given = {name: None if t is None else t.contiguous() for name, t in tensors.items()}
    is_cuda, progress = given["parameters"].is_cuda, _take_progress()
    if options["dense_from"] is None:
        options["dense_from"] = _native.cuda().MLP_DENSE_FROM if is_cuda else _native.cpu.mlp_dense_from()
    for split in ("train", "test"):  # the kernels take either labels or targets
        y = given[f"y_{split}"]
        is_label = y.dtype == torch.int64
        given[f"label_{split}"] = y if is_label else None
        given[f"y_{split}"] = None if is_label else y
    return (_mlp_trainer_cuda.run if is_cuda else _run_cpu)(given, widths, options, progress)


def _run_cpu(given: dict, widths: list[int], options: dict, progress):
    """Allocates the outputs and hands every pointer down.

    The kernel fills every output: a copy by torch would leave its threads spinning for a while beside ours.
    """
    parameters, epochs, scores = given["parameters"], options["epochs"], given["scores"]
    n = len(parameters)
    for name in ("label_train", "label_test"):
        given[name] = None if given[name] is None else given[name].to(torch.int32)
    out = {
        "parameters_out": torch.empty_like(parameters),
        "scores_out": parameters.new_empty(0) if scores is None else torch.empty_like(scores),
        "mask_out": torch.empty_like(given["mask"]),
        "train_loss": torch.zeros(n, epochs, dtype=torch.float64),
        "test_loss": torch.zeros(n, epochs + 1, dtype=torch.float64),
        "metric": torch.zeros(n, epochs + 1, dtype=torch.float64),
    }
    codes = {
        "loss": _native.cpu.LOSSES[options["loss"]],
        "optimizer": _native.cpu.OPTIMIZERS[options["optimizer"]],
        "schedule": _native.cpu.SCHEDULES[options["schedule"]],
    }
    _native.cpu.mlp_trainer(
        widths=widths,
        n_networks=n,
        n_train=given["x_train"].shape[1],
        n_test=given["x_test"].shape[1],
        n_threads=torch.get_num_threads(),
        progress=progress,
        **(options | codes),
        **{name: pointer(tensor) for name, tensor in (given | out).items()},
    )
    return tuple(out.values())


def _mlp_gradients(parameters, mask, widths, x, y, dataset, *, loss, dense_from=None):
    _check_networks(parameters, mask, widths, dataset, loss)
    _check_samples("", x, y, widths, loss, None)
    if x.shape[1] == 0:
        raise ValueError("x: expected at least one sample")
    _check_sizes(widths, x.shape[1], "x")
    _check_dataset(dataset, x.shape[0])
    _check_values(y, "y", widths[-1])
    tensors = {
        "parameters": parameters, "mask": mask, "scores": None, "dataset": dataset,
        "keys": torch.zeros(len(parameters), 2, dtype=torch.int64, device=parameters.device),
        "x_train": x, "y_train": y, "x_test": x, "y_test": y,
    }  # fmt: skip
    gradient, *_ = _run(
        tensors, list(widths), loss=loss, optimizer="gradient", schedule="constant", epochs=1, batch_size=x.shape[1],
        lr=0.0, beta1=0.0, beta2=0.0, eps=0.0, weight_decay=0.0, step_epochs=1, gamma=1.0, density=1.0, anneal=False,
        dense_from=dense_from,
    )  # fmt: skip
    return gradient


for _device in ("CPU", "CUDA"):
    library.impl("mlp_trainer", _mlp_trainer, _device)
    library.impl("mlp_gradients", _mlp_gradients, _device)


@torch.library.register_fake("pns_fast::mlp_trainer", lib=library)
def _(parameters, mask, widths, x_train, y_train, x_test, y_test, dataset, keys, *, epochs, scores=None, **_options):
    n = parameters.shape[0]
    return (
        torch.empty_like(parameters),
        parameters.new_empty(0) if scores is None else torch.empty_like(scores),
        torch.empty_like(mask),
        parameters.new_empty((n, epochs), dtype=torch.float64),
        parameters.new_empty((n, epochs + 1), dtype=torch.float64),
        parameters.new_empty((n, epochs + 1), dtype=torch.float64),
    )


@torch.library.register_fake("pns_fast::mlp_gradients", lib=library)
def _(parameters, mask, widths, x, y, dataset, *, loss, dense_from=None):
    return torch.empty_like(parameters)


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
    """Trains N masked MLPs of one architecture, each on its own data set, all epochs in one native call.

    Kept parameters follow ``torch.optim.SGD`` or ``Adam`` on the mean cross-entropy or mean squared error; pruned ones
    are never written. With ``scores`` it is edge-popup: parameters stay, the top ``density`` of ``|score|`` (per layer,
    weights and biases apart) is in force, and every score is trained straight through,
    ``dL/ds = dL/dw_in_force * w * sign(s)`` with sign(0) = 1. Networks are shared out among
    ``torch.get_num_threads()`` threads, and the steps of a large network among threads that would be idle; results
    depend neither on that nor on the other networks of the call. A network stops after an epoch whose mean train loss
    is not finite; the others go on.

    On CUDA a block or a cluster of blocks trains a network; batches are the same, results agree with the CPU's but for
    rounding, are the same in every run, and lie on the device. A call waits for the device after every quarter of a
    second of training, so it cannot be captured in a CUDA graph.

    Args:
        parameters: float32 ``[N, P]``, flat layout ``[W1 | b1 | W2 | b2 ...]``, each W row-major ``[O, I]``.
        mask: bool ``[N, P]``; ignored with ``scores``.
        widths: layer widths, input and output included.
        x_train, x_test: float32 ``[D, n, n_0]``.
        y_train, y_test: int64 labels ``[D, n]`` for "cross_entropy", float32 ``[D, n, n_L]`` for "mse".
        dataset: int64 ``[N]``: which of the D data sets a network sees.
        keys: int64 ``[N, 2]``: seed and network number, which key the batch order.
        loss: "cross_entropy" or "mse".
        epochs, batch_size: a last partial batch is used.
        optimizer: "sgd" (``beta1`` is the momentum) or "adam" (``beta1``, ``beta2``, ``eps``), with learning rate
            ``lr`` and ``weight_decay`` added to the gradient, as in torch.
        schedule: "constant", "cosine" (over epochs), or "step": epoch i trains at ``lr * gamma ** (i // step_epochs)``.
        step_epochs, gamma: of "step", >= 1 and >= 0.
        scores, density, anneal: edge-popup; with ``anneal`` epoch i of E keeps ``density ** ((i + 1) / E)``.
        dense_from: kept fraction from which a layer takes the dense path (default: measured).
        progress: called as ``progress(done, total)`` with the epochs finished, those a stopped network skips included,
            and all epochs of the call; on the calling thread, at most every 50 ms while training and once at the end,
            ``done == total``. What it raises ends the call.

    Returns:
        parameters ``[N, P]``, scores (``[N, P]`` or empty), mask ``[N, P]`` (edge-popup: the final one), and float64
        train_loss ``[N, epochs]``, test_loss and metric ``[N, epochs + 1]`` (column 0: before training; metric:
        accuracy, or the mean squared error after the least-squares factor of each output). Of a network that stopped
        in epoch i, ``train_loss[i]`` is what it was, NaN or infinite, everything after it is NaN, and parameters and
        scores are those at the end of epoch i.

    Raises:
        TypeError, ValueError: naming the argument. KeyboardInterrupt at most 50 ms and a training step after Ctrl-C.

    Source: section 3 and appendix B.1 of Fischer & Burkholz 2022; edge-popup: Ramanujan et al. 2020.

    Example:
        >>> theta, x, y = torch.tensor([[1.0, 0.0]]), torch.ones(1, 4, 1), torch.full((1, 4, 1), 3.0)
        >>> zeros = torch.zeros(1, 2, dtype=torch.int64)
        >>> out = mlp_trainer(theta, torch.tensor([[True, False]]), [1, 1], x, y, x, y, zeros[:, 0], zeros,
        ...                   loss="mse", epochs=1, batch_size=4, optimizer="sgd", lr=0.25, beta1=0.0)
        >>> out[0]  # the weight moved by lr * 2 * (3 - 1); the pruned bias stayed
        tensor([[2., 0.]])
    """
    check_callback("progress", progress)
    with nullcontext() if progress is None else _reporting_to(progress):  # torch.compile can trace the first
        return torch.ops.pns_fast.mlp_trainer(
            parameters, mask, widths, x_train, y_train, x_test, y_test, dataset, keys,
            loss=loss, epochs=epochs, batch_size=batch_size, optimizer=optimizer, lr=lr, beta1=beta1, beta2=beta2,
            eps=eps, weight_decay=weight_decay, schedule=schedule, scores=scores, density=density, anneal=anneal,
            dense_from=dense_from, step_epochs=step_epochs, gamma=gamma,
        )  # fmt: skip


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
    """The gradient of the mean loss of one batch to every kept parameter of N masked MLPs, by the trainer's own step.

    Args:
        parameters, mask, widths, dataset, loss, dense_from: as in :func:`mlp_trainer`.
        x: float32 ``[D, B, n_0]``: one batch a data set.
        y: int64 ``[D, B]`` or float32 ``[D, B, n_L]``.

    Returns:
        float32 ``[N, P]``, 0 at pruned positions.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: the gradient in SNIP's score (Lee et al. 2019).

    Example:
        >>> x, y = torch.ones(1, 4, 1), torch.full((1, 4, 1), 3.0)
        >>> index = torch.zeros(1, dtype=torch.int64)
        >>> theta, mask = torch.tensor([[1.0, 0.0]]), torch.ones(1, 2, dtype=torch.bool)
        >>> mlp_gradients(theta, mask, [1, 1], x, y, index, loss="mse")
        tensor([[-4., -4.]])
    """
    return torch.ops.pns_fast.mlp_gradients(parameters, mask, widths, x, y, dataset, loss=loss, dense_from=dense_from)


def batch_order(n: int, key: tuple[int, int], epoch: int) -> Tensor:
    """The order in which :func:`mlp_trainer` visits ``n`` samples: int64 ``[n]``, a permutation.

    Args:
        n: number of training samples, below 2**31.
        key: (seed, network), a row of ``keys``.
        epoch: from 0.

    Returns:
        int64 ``[n]``.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Philox (Salmon et al. 2011) keys a Feistel permutation; csrc/core/philox.h.

    Example:
        >>> sorted(batch_order(5, (0, 0), 0).tolist())
        [0, 1, 2, 3, 4]
    """
    if len(key) != 2:
        raise ValueError(f"key: expected (seed, network), got {key}")
    seed, network = key
    for name, value, end in (("n", n, 2**31), ("key", seed, 2**63), ("key", network, 2**32), ("epoch", epoch, 2**32)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
        if not 0 <= value < end:
            raise ValueError(f"{name}: expected a value in [0, {end - 1}], got {value}")
    order = torch.empty(n, dtype=torch.int64)
    _native.cpu.batch_order(n, seed, network, epoch, order.data_ptr())
    return order
