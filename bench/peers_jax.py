"""The trainer in JAX, as its users would write it: an epoch is a scan, networks are mapped, all of it is jitted."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from peers import Training
from torch import Tensor

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else JAX takes three quarters of a GPU's memory
try:
    import jax
    import jax.numpy as jnp
except ImportError:
    jax = None

OLDEST = (0, 7)  # jax.shard_map with check_vma
NAMES = ("JAX jit(vmap(scan))", "JAX jit(lax.map(scan))", "JAX shard_map(vmap(scan))")
B1, B2, EPS = 0.9, 0.999, 1e-8


_no_device = ""  # why JAX cannot use the device of this run
_compiled: dict[tuple, tuple[Callable, float]] = {}  # the rows of a run differ in masks, not in shapes


def missing() -> str:
    """Why JAX cannot run here, or ""."""
    if jax is None:
        return "not installed"
    if _no_device:
        return _no_device
    return "" if jax.__version_info__ >= OLDEST else f"version {jax.__version__} is older than 0.7"


def use_devices(device: str, n_threads: int) -> None:
    """On the CPU one device a thread, so that shard_map can spread networks over cores. Before JAX's first call."""
    global _no_device
    if missing():
        return
    jax.config.update("jax_platforms", device)  # a JAX with CUDA would take the GPU in a run on the CPU
    if device == "cpu":
        jax.config.update("jax_num_cpu_devices", n_threads)
        return
    jax.config.update("jax_default_matmul_precision", "highest")  # float32, as torch and we have it; else TF32
    try:
        jax.devices()
    except RuntimeError:
        _no_device = "installed without CUDA"


def _loss(params, x, y):
    for i, (weight, bias) in enumerate(params):
        x = x @ weight.T + bias
        if i < len(params) - 1:
            x = jax.nn.relu(x)
    return -jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], axis=1).mean()


def _epoch(params, mask, x, y, order, *, batch_size: int, lr: float):
    """One network, one epoch of Adam with a last partial batch; returns its mean loss and parameters."""

    def step(carry, index):
        params, m, v, t = carry
        loss, grad = jax.value_and_grad(_loss)(params, x[index], y[index])
        if mask is not None:
            grad = jax.tree.map(jnp.multiply, grad, mask)
        t = t + 1
        m = jax.tree.map(lambda m, g: B1 * m + (1 - B1) * g, m, grad)
        v = jax.tree.map(lambda v, g: B2 * v + (1 - B2) * g * g, v, grad)
        # 1 - b^t loses four digits in float32 when b is 0.999 and t small
        rate, root = -lr / jnp.expm1(t * math.log(B1)), jnp.sqrt(-jnp.expm1(t * math.log(B2)))
        params = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) / root + EPS), params, m, v)
        return (params, m, v, t), loss * len(index)

    full = len(order) // batch_size * batch_size
    zeros = jax.tree.map(jnp.zeros_like, params)
    carry, losses = jax.lax.scan(step, (params, zeros, zeros, 0.0), order[:full].reshape(-1, batch_size))
    total = losses.sum()
    if full < len(order):
        carry, last = step(carry, order[full:])
        total = total + last
    return total / len(order), carry[0]


def _forms(epoch, n_devices: int) -> dict[str, Callable]:
    def by_vmap(params, mask, x, y, order):
        return jax.vmap(epoch, (0, 0 if mask is not None else None, None, None, 0))(params, mask, x, y, order)

    def by_map(params, mask, x, y, order):
        return jax.lax.map(lambda one: epoch(one[0], one[1], x, y, one[2]), (params, mask, order))

    split, whole = jax.sharding.PartitionSpec("networks"), jax.sharding.PartitionSpec()
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:n_devices]), ("networks",))
    specs = {"in_specs": (split, split, whole, whole, split), "out_specs": split}
    by_shards = jax.shard_map(by_vmap, mesh=mesh, check_vma=False, **specs)
    return dict(zip(NAMES, (by_vmap, by_map, by_shards), strict=True))


def trainers(
    job: Training, n_threads: int, names: Sequence[str] = NAMES
) -> dict[str, tuple[Callable[[], Tensor] | None, str]]:
    """For each form: a call that trains and returns mean losses [N], or None, and a note (then the reason)."""
    if missing():
        return dict.fromkeys(names, (None, missing()))

    def epoch(*arguments):
        return _epoch(*arguments, batch_size=job.batch_size, lr=job.lr)

    n_devices = min(n_threads, len(jax.devices()))
    inputs = (
        _arrays(job.layers(job.parameters)),
        None if job.is_dense else _arrays(job.layers(job.mask.float())),
        *(jnp.asarray(t.cpu().numpy()) for t in (job.x, job.y.int(), job.order.int())),
    )
    found = {}
    forms = _forms(epoch, n_devices)
    for name in names:
        if name == NAMES[2] and (n_devices < 2 or len(job.parameters) % n_devices):
            found[name] = (None, f"{len(job.parameters)} networks on {n_devices} devices")
            continue
        key = (name, job.widths, job.is_dense, job.order.shape, job.batch_size, job.lr)
        compiled, seconds = _compiled.get(key) or _compile(key, forms[name], inputs)
        found[name] = (_runner(compiled, inputs), f"compiled in {seconds:.1f} s")
    return found


def _arrays(layers: Iterable[tuple[Tensor, Tensor]]) -> list:
    return [tuple(jnp.asarray(p.cpu().numpy()) for p in pair) for pair in layers]


def _compile(key: tuple, form: Callable, inputs: tuple) -> tuple[Callable, float]:
    start = time.perf_counter()
    compiled = jax.jit(form).lower(*inputs).compile()
    _compiled[key] = compiled, time.perf_counter() - start
    return _compiled[key]


def _runner(compiled: Callable, inputs: tuple) -> Callable[[], Tensor]:
    def run() -> Tensor:
        losses, _ = jax.block_until_ready(compiled(*inputs))
        return torch.from_numpy(np.array(losses))

    return run
