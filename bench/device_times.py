"""What the kernels take on the GPU itself, call by call, without Python around them: ``python bench/device_times.py``.

torch's profiler adds up each launch's time on the device; of the trainer, whose calls last tens of milliseconds, the
wall time is given. `run.py --device cuda` times whole calls beside their peers'.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import torch
from masks import make_mask
from torch.profiler import ProfilerActivity, profile

import pns_fast as pns
from pns_fast import ops

WIDTHS = (2, 100, 100, 100, 4)
CALLS = 5
DISTINCT = 16  # networks; more are these again


def show(label: str, call: Callable[[], object]) -> None:
    """The device time of a call, and of each kernel in it."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(CALLS):
            call()
        torch.cuda.synchronize()
    kernels = [(e.self_device_time_total / CALLS, e.count / CALLS, e.key) for e in profiled.key_averages()]
    print(f"{label}: {sum(t for t, _, _ in kernels):.1f} us")
    for microseconds, count, name in sorted(kernels, reverse=True):
        if microseconds > 0:
            name = re.sub(r"^void |pns::|\(anonymous namespace\)::|\(.*$", "", name)
            print(f"  {microseconds:9.1f} us  {count:g}x {name[:90]}", flush=True)


def topk_mask(g: torch.Generator) -> None:
    for n in (10**6, 10**7, 10**8, 10**9):
        scores = torch.randn(n, device="cuda", generator=g).abs_()
        show(f"topk_mask, n = {n:,}, k = 10%", lambda s=scores: ops.topk_mask(s, len(s) // 10))
        if n == 10**8:
            zeros = torch.where(scores > 1.6449, scores, 0.0)
            show(f"topk_mask, n = {n:,}, k = 50%, 90% zeros", lambda s=zeros: ops.topk_mask(s, len(s) // 2))
            show(f"kth_largest, n = {n:,}, k = 10%", lambda s=scores: ops.kth_largest(s, len(s) // 10))


def best_match(g: torch.Generator) -> None:
    for t, c, p, support in ((128, 2**20, 64, 8), (512, 4096, 4608, 46)):
        target, candidates = (torch.randn(n, p, device="cuda", generator=g) for n in (t, c))
        on = torch.rand(t, p, device="cuda", generator=g).argsort(-1) < support
        call = (target, on, candidates)
        show(f"best_match, T = {t}, C = {c:,}, P = {p:,}, support {support}", lambda call=call: ops.best_match(*call))


def masked_linear(g: torch.Generator) -> None:
    for n in (1024, 4096):
        x, weight = (torch.randn(m, n, device="cuda", generator=g, requires_grad=True) for m in (256, n))
        upstream = torch.randn(256, n, device="cuda", generator=g)
        for density in (0.01, 0.1, 0.5):
            mask = torch.rand(n, n, device="cuda", generator=g) < density
            label, wanted = f"N = {n}, B = 256, density {density:g}, fwd+bwd", (x, weight)
            for name, form in (
                ("masked_linear", lambda mask=mask, x=x, w=weight: ops.masked_linear(x, w, mask)),
                ("F.linear(x, w * m)", lambda mask=mask, x=x, w=weight: torch.nn.functional.linear(x, w * mask)),
            ):

                def both(form=form, wanted=wanted, upstream=upstream):
                    return torch.autograd.grad(form(), wanted, upstream)

                show(f"{name}, {label}", both)


def mlp_trainer() -> None:
    data = pns.tasks.get("circle").sample(n=10_000, seed=0)
    samples = [t[None].cuda() for t in (data.x_train, data.y_train, data.x_test, data.y_test)]
    adam = {"optimizer": "adam", "lr": 1e-3, "beta1": 0.9}
    popup = {"optimizer": "sgd", "lr": 0.1, "beta1": 0.9, "weight_decay": 5e-4, "density": 0.5}
    jobs = [(n, d, "connected", adam) for d in (1.0, 0.5, 0.1, 0.01) for n in (1, 132, 528)]
    jobs += [(528, 0.1, "random", adam), (528, 0.01, "random", adam), (1, 1.0, "connected", popup)]
    for n, density, kind, options in [*jobs, (132, 1.0, "connected", popup)]:
        repeats, n_distinct = -(-n // DISTINCT), min(n, DISTINCT)
        parameters = pns.init_population(WIDTHS, n=n_distinct, seed=0).flatten().repeat(repeats, 1)[:n].cuda()
        mask = make_mask(kind, WIDTHS, n_distinct, density).repeat(repeats, 1)[:n].cuda()
        number = torch.arange(n, device="cuda")
        if options is popup:
            options = {**popup, "scores": 0.1 * torch.randn(parameters.shape, device="cuda")}

        def train(epochs: int, options=options, network=(parameters, mask), number=number) -> float:
            keys = torch.stack([number * 0, number], 1)
            torch.cuda.synchronize()
            begin = time.perf_counter()
            ops.mlp_trainer(
                *network,
                WIDTHS,
                *samples,
                number * 0,
                keys,
                loss="cross_entropy",
                epochs=epochs,
                batch_size=32,
                **options,
            )
            torch.cuda.synchronize()
            return (time.perf_counter() - begin) / (epochs * 282)

        train(1)
        step = train(2) * 1e6
        label = "edge-popup, density 0.5" if "scores" in options else f"Adam, density {density:g}, {kind}"
        print(f"mlp_trainer, {n} networks, {label}: {step:.1f} us a step, {step / n:.3f} us a network-step", flush=True)


def main() -> None:
    properties = torch.cuda.get_device_properties(0)
    print(f"{properties.name}, torch {torch.__version__}, pns_fast {pns.__version__}")
    generator = torch.Generator("cuda").manual_seed(0)
    for kernel in (topk_mask, best_match, masked_linear):
        kernel(generator)
    mlp_trainer()


if __name__ == "__main__":
    main()
