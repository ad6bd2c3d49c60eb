"""mlp_trainer on a device, against the CPU's trainer and the float64 loop of ops/cases.py. The source on the CPU:
test_cuda_sources.py."""

from __future__ import annotations

import math

import pytest
import torch
from ops.cases import ADAM, SGD, STEP, Case, plain_gradients, plain_training
from ops.streams import on_a_busy_stream
from tolerances import TOLERANCES

from pns_fast import ops
from pns_fast.ops import _mlp_trainer_cuda

pytestmark = pytest.mark.gpu

DENSE, COMPRESSED = 0.0, 2.0
SHAPES = [
    ((2, 33, 20, 4), "cross_entropy"),
    ((3, 100, 100, 3), "mse"),
    ((1, 7, 1), "mse"),
    ((6, 3), "cross_entropy"),
]


@pytest.fixture(autouse=True)
def one_thread(set_threads):
    set_threads(1)  # the loops in float64 are many small operations


def on(device, arguments):
    return [a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments]


def train(cuda, case: Case, optimizer: dict, epochs: int, **changes):
    options = case.options(optimizer, epochs) | changes
    results = ops.mlp_trainer(*on(cuda, case.arguments()), **options)
    assert all(r.device == cuda for r in results)
    return [r.cpu() for r in results]


def assert_follows(cuda, case: Case, optimizer: dict, epochs: int, tolerance: str, paths=(DENSE, COMPRESSED, None)):
    truth = plain_training(case, tuple(optimizer.items()), epochs)
    rtol, atol = TOLERANCES[tolerance]
    rtol_curve, atol_curve = TOLERANCES["loss_curve"]
    for dense_from in paths:
        got = train(cuda, case, optimizer, epochs, dense_from=dense_from)
        torch.testing.assert_close(got[0].double(), truth[0], rtol=rtol, atol=atol)
        for curve, expected in zip(got[3:5], truth[1:], strict=True):
            torch.testing.assert_close(curve, expected, rtol=rtol_curve, atol=atol_curve)
        assert torch.equal(got[2], case.arguments()[1])
        assert got[1].numel() == 0
        # pruned parameters are never written
        p, mask = case.arguments()[:2]
        assert torch.equal(got[0][~mask], p[~mask])


@pytest.mark.parametrize("density", [1.0, 0.5, 0.05])
@pytest.mark.parametrize(("widths", "loss"), SHAPES, ids=str)
def test_100_steps_of_sgd(cuda, widths, loss, density):
    assert_follows(cuda, Case(widths, loss, density), SGD, 34, "parameters_100_sgd_steps")


@pytest.mark.parametrize("density", [1.0, 0.5, 0.05])
@pytest.mark.parametrize(("widths", "loss"), SHAPES, ids=str)
def test_20_steps_of_adam(cuda, widths, loss, density):
    assert_follows(cuda, Case(widths, loss, density), ADAM, 7, "parameters_20_adam_steps")


@pytest.mark.parametrize("density", [1.0, 0.1])
@pytest.mark.parametrize(("widths", "loss"), SHAPES[:2], ids=str)
def test_loss_curve_of_200_steps_of_adam(cuda, widths, loss, density):
    case = Case(widths, loss, density, n_networks=1)
    _, train_loss, test_loss = plain_training(case, tuple(ADAM.items()), 67)
    rtol, atol = TOLERANCES["loss_curve_200_adam_steps"]
    for dense_from in (DENSE, COMPRESSED):
        got = train(cuda, case, ADAM, 67, dense_from=dense_from)
        torch.testing.assert_close(got[3], train_loss, rtol=rtol, atol=atol)
        torch.testing.assert_close(got[4], test_loss, rtol=rtol, atol=atol)


@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=["sgd", "adam"])
@pytest.mark.parametrize(("n", "batch_size"), [(25, 1), (1, 32), (70, 1000), (230, 40), (230, 64), (65, 64)])
def test_batch_sizes(cuda, n, batch_size, optimizer):
    steps = "parameters_20_adam_steps" if optimizer is ADAM else "parameters_100_sgd_steps"
    for loss in ("cross_entropy", "mse"):
        case = Case((3, 18, 4), loss, 0.6, n=n, batch_size=batch_size)
        assert_follows(cuda, case, optimizer, 3, steps)


VARIANTS = {
    "adam with weight decay": {**ADAM, "weight_decay": 0.01},
    "adam with cosine": {**ADAM, "schedule": "cosine"},
    "adam with steps": {**ADAM, **STEP},
    "adam with other betas": {**ADAM, "beta1": 0.5, "beta2": 0.9, "eps": 1e-4},
    "sgd with cosine": {**SGD, "schedule": "cosine"},
    "sgd without momentum": {**SGD, "beta1": 0.0},
    "sgd with large weight decay": {**SGD, "weight_decay": 0.1},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_optimizers(cuda, variant):
    optimizer = VARIANTS[variant]
    steps = "parameters_20_adam_steps" if optimizer["optimizer"] == "adam" else "parameters_100_sgd_steps"
    assert_follows(cuda, Case((3, 24, 10, 2), "mse", 0.3), optimizer, 7, steps)


@pytest.mark.parametrize(("widths", "loss"), SHAPES, ids=str)
def test_gradients_of_one_step(cuda, widths, loss):
    rtol, _ = TOLERANCES["gradient_of_one_step"]
    for density in (1.0, 0.5, 0.05):
        for n in (1, 32, 40, 100):
            case = Case(widths, loss, density, n=n, seed=4000 + n)
            p, mask, _, x, y, _, _, dataset, _ = case.arguments()
            truth = torch.stack(
                [plain_gradients(p[i], mask[i], widths, x[dataset[i]], y[dataset[i]], loss) for i in range(len(p))]
            )
            on_cpu = ops.mlp_gradients(p, mask, list(widths), x, y, dataset, loss=loss)
            for dense_from in (DENSE, COMPRESSED, None):
                arguments = on(cuda, (p, mask, list(widths), x, y, dataset))
                got = ops.mlp_gradients(*arguments, loss=loss, dense_from=dense_from).cpu()
                scale = float(truth.abs().max())
                assert float((got.double() - truth).abs().max()) <= rtol * scale
                assert float((got - on_cpu).abs().max()) <= rtol * scale
                assert bool((got[~mask] == 0).all())


@pytest.mark.parametrize(
    ("density", "anneal"),
    [(0.5, False), (0.1, False), (0.1, True), pytest.param(0.5, True, marks=pytest.mark.sanitize)],
)
def test_edge_popup_as_on_the_cpu(cuda, density, anneal):
    case = Case((2, 33, 20, 4), n=64)  # of 66, 660 and 80 weights: a warp's and a block's selection
    arguments = case.arguments()
    scores = torch.randn(arguments[0].shape, generator=torch.Generator().manual_seed(3)) * 0.2
    scores[:, 66:99] = 0  # biases start at zero, where all of them tie
    options = case.options(SGD, 10) | {"density": density, "anneal": anneal}
    expected = ops.mlp_trainer(*arguments, scores=scores, **options)
    got = [t.cpu() for t in ops.mlp_trainer(*on(cuda, arguments), scores=scores.to(cuda), **options)]
    assert torch.equal(got[2], expected[2])
    rtol, atol = TOLERANCES["edge_popup_scores"]
    torch.testing.assert_close(got[1], expected[1], rtol=rtol, atol=10 * atol)
    assert torch.equal(got[0], arguments[0])
    for curve, of_cpu in zip(got[3:], expected[3:], strict=True):
        rtol, atol = TOLERANCES["loss_curve"]
        torch.testing.assert_close(curve, of_cpu, rtol=rtol, atol=atol)


# All in shared memory, moments streamed from L2 (128), all in L2 with clusters of blocks (300; a batch of 200).
@pytest.mark.sanitize
@pytest.mark.parametrize(
    ("width", "density", "batch"), [(40, 1.0, 32), (128, 1.0, 32), (128, 0.5, 32), (300, 1.0, 32), (64, 0.2, 200)]
)
def test_every_residence_as_on_the_cpu(cuda, width, density, batch):
    case = Case((2, width, width, 4), density=density, n=3 * batch - 5, batch_size=batch, n_networks=3)
    arguments = case.arguments()
    expected = ops.mlp_trainer(*arguments, **case.options(ADAM, 3))
    got = train(cuda, case, ADAM, 3)
    rtol, atol = TOLERANCES["train_16_steps"]
    torch.testing.assert_close(got[0], expected[0], rtol=rtol, atol=atol)
    for curve, of_cpu in zip(got[3:5], expected[3:5], strict=True):
        torch.testing.assert_close(curve, of_cpu, rtol=rtol, atol=atol)


@pytest.mark.parametrize("width", [100, 300])
def test_a_network_is_the_same_alone_and_among_many_and_every_time(cuda, width):
    case = Case((2, width, width, 4), density=0.3, n=96, n_networks=200 if width == 100 else 20)
    p, mask, widths, *data, dataset, keys = on(cuda, case.arguments())
    options = case.options(ADAM, 2)
    together = ops.mlp_trainer(p, mask, widths, *data, dataset, keys, **options)
    again = ops.mlp_trainer(p, mask, widths, *data, dataset, keys, **options)
    assert all(torch.equal(a, b) for a, b in zip(together, again, strict=True))
    for i in (0, 7, len(p) - 1):
        alone = ops.mlp_trainer(
            p[i : i + 1], mask[i : i + 1], widths, *data, dataset[i : i + 1], keys[i : i + 1], **options
        )
        assert all(torch.equal(a, b[i : i + 1] if b.numel() else b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=["sgd", "adam"])
def test_ranges_and_chunks_change_nothing(cuda, monkeypatch, optimizer):
    case = Case((2, 40, 30, 4), density=0.4, n=96, n_networks=9)
    arguments = on(cuda, case.arguments())
    whole = ops.mlp_trainer(*arguments, **case.options(optimizer, 5))
    monkeypatch.setattr(_mlp_trainer_cuda, "SECONDS_OF_RANGE", 0.0)  # an epoch a launch
    monkeypatch.setattr(_mlp_trainer_cuda, "MOST_IMAGE_BYTES", 100_000)  # a few networks at a time
    seen = []
    parts = ops.mlp_trainer(
        *arguments, **case.options(optimizer, 5), progress=lambda done, total: seen.append((done, total))
    )
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    assert seen == sorted(seen)
    assert seen[-1] == (45, 45)
    assert len(seen) > 5


def test_what_progress_raises_ends_the_call(cuda, monkeypatch):
    monkeypatch.setattr(_mlp_trainer_cuda, "SECONDS_OF_RANGE", 0.0)
    case = Case((2, 40, 30, 4), n=96)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ops.mlp_trainer(*on(cuda, case.arguments()), **case.options(ADAM, 5), progress=stop)
    assert_follows(cuda, case, ADAM, 1, "parameters_20_adam_steps", (None,))  # the device is fine


def test_a_network_that_diverges_stops_and_others_go_on(cuda):
    case = Case((2, 33, 20, 4), n_networks=3)
    p, *rest = case.arguments()
    p[1] = math.nan
    mask = torch.ones_like(rest[0])
    expected = ops.mlp_trainer(p, mask, *rest[1:], **case.options(ADAM, 4))
    got = [t.cpu() for t in ops.mlp_trainer(*on(cuda, (p, mask, *rest[1:])), **case.options(ADAM, 4))]
    for mine, of_cpu in zip(got[3:], expected[3:], strict=True):
        assert torch.equal(mine.isnan(), of_cpu.isnan())
        torch.testing.assert_close(mine, of_cpu, rtol=1e-3, atol=1e-3, equal_nan=True)


def test_no_epochs_and_no_networks(cuda):
    case = Case((2, 33, 20, 4))
    p, *rest = on(cuda, case.arguments())
    got = ops.mlp_trainer(p, *rest, **case.options(ADAM, 0))
    assert torch.equal(got[0], p)
    expected = ops.mlp_trainer(*case.arguments(), **case.options(ADAM, 0))
    rtol, atol = TOLERANCES["loss_curve"]
    torch.testing.assert_close(got[4].cpu(), expected[4], rtol=rtol, atol=atol)
    mask, widths, *data, dataset, keys = rest
    empty = ops.mlp_trainer(p[:0], mask[:0], widths, *data, dataset[:0], keys[:0], **case.options(ADAM, 2))
    assert empty[0].shape == (0, p.shape[1])
    assert empty[3].shape == (0, 2)


def test_runs_on_the_current_stream(cuda):
    case = Case((2, 33, 20, 4), density=0.3)
    p, *rest = on(cuda, case.arguments())
    expected = ops.mlp_trainer(p, *rest, **case.options(ADAM, 2))[0]
    got = on_a_busy_stream(p, lambda late: ops.mlp_trainer(late, *rest, **case.options(ADAM, 2))[0] * 1)
    assert torch.equal(got, expected)


def test_wrong_arguments_are_named(cuda):
    p, mask, widths, x, y, *rest = on(cuda, Case((2, 33, 20, 4)).arguments())
    options = Case((2, 33, 20, 4)).options(ADAM, 1)
    with pytest.raises(ValueError, match="mask"):
        ops.mlp_trainer(p, mask.cpu(), widths, x, y, *rest, **options)
    with pytest.raises(ValueError, match="y_train"):
        ops.mlp_trainer(p, mask, widths, x, y + 4, *rest, **options)
    wide = [1, 70_000, 1]
    n = 3 * 70_000 + 1
    with pytest.raises(ValueError, match="widths"):
        ops.mlp_trainer(
            torch.zeros(1, n, device=cuda), torch.ones(1, n, dtype=torch.bool, device=cuda), wide,
            *(torch.zeros(1, 3, 1, device=cuda) for _ in range(4)), rest[-2][:1] * 0, rest[-1][:1],
            **(options | {"loss": "mse"}),
        )  # fmt: skip
