"""mlp_trainer and mlp_gradients with fixed masks, against a plain torch loop in float64 (ops/cases.py)."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from ops.cases import ADAM, SGD, STEP, WIDTHS, Case, n_parameters, plain_gradients, plain_training, slices
from tolerances import TOLERANCES

from pns_fast import ops, reference

DENSE, COMPRESSED = 0.0, 2.0
LOSSES = ("cross_entropy", "mse")
SHAPES = [(w, loss) for w in WIDTHS for loss in LOSSES if w[-1] > 1 or loss == "mse"]
DENSITIES = (1.0, 0.5, 0.05, 0.005)


@pytest.fixture(autouse=True)
def one_thread(set_threads):
    set_threads(1)


def train(case: Case, optimizer: dict, epochs: int, arguments=None, **changes):
    return ops.mlp_trainer(*(arguments or case.arguments()), **case.options(optimizer, epochs), **changes)


def assert_follows(case: Case, optimizer: dict, epochs: int, tolerance: str, arguments=None):
    """Parameters and both loss curves follow the float64 loop, on the dense and on the compressed path."""
    truth = plain_training(case, tuple(optimizer.items()), epochs)
    rtol, atol = TOLERANCES[tolerance]
    for dense_from in (DENSE, COMPRESSED, None):
        got = train(case, optimizer, epochs, arguments, dense_from=dense_from)
        torch.testing.assert_close(got[0].double(), truth[0], rtol=rtol, atol=atol)
        for curve, expected in zip(got[3:5], truth[1:], strict=True):
            rtol_curve, atol_curve = TOLERANCES["loss_curve"]
            torch.testing.assert_close(curve, expected, rtol=rtol_curve, atol=atol_curve)
        assert torch.equal(got[2], case.arguments()[1])
        assert got[1].numel() == 0


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize(("widths", "loss"), SHAPES, ids=str)
def test_100_steps_of_sgd(simd_level, widths, loss, density):
    assert_follows(Case(widths, loss, density), SGD, 34, "parameters_100_sgd_steps")  # 3 steps an epoch


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize(("widths", "loss"), SHAPES, ids=str)
def test_20_steps_of_adam(simd_level, widths, loss, density):
    assert_follows(Case(widths, loss, density), ADAM, 7, "parameters_20_adam_steps")


@pytest.mark.parametrize("density", [1.0, 0.1])
@pytest.mark.parametrize(("widths", "loss"), SHAPES, ids=str)
def test_loss_curve_of_200_steps_of_adam(simd_level, widths, loss, density):
    case = Case(widths, loss, density, n_networks=1)
    _, train_loss, test_loss = plain_training(case, tuple(ADAM.items()), 67)
    rtol, atol = TOLERANCES["loss_curve_200_adam_steps"]
    for dense_from in (DENSE, COMPRESSED):
        got = train(case, ADAM, 67, dense_from=dense_from)
        torch.testing.assert_close(got[3], train_loss, rtol=rtol, atol=atol)
        torch.testing.assert_close(got[4], test_loss, rtol=rtol, atol=atol)


@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=["sgd", "adam"])
@pytest.mark.parametrize(
    ("n", "batch_size"),
    [(25, 1), (1, 1), (1, 32), (70, 1000), (70, 70), (230, 40), (230, 64), (230, 100), (65, 64), (600, 256)],
)
def test_batch_sizes(simd_level, n, batch_size, optimizer):
    for loss in LOSSES:
        case = Case((3, 18, 4), loss, 0.6, n=n, batch_size=batch_size)
        assert_follows(
            case, optimizer, 3, "parameters_20_adam_steps" if optimizer is ADAM else "parameters_100_sgd_steps"
        )


@pytest.mark.parametrize("density", [0.02, 0.05, 0.2, 1.0])
def test_many_features(simd_level, density):
    """Blocks of features that are gathered at once, some that are alone, and some that no kept weight reads."""
    for loss in LOSSES:
        case = Case((53, 12, 3), loss, density, n=45, batch_size=20)
        assert_follows(case, ADAM, 3, "parameters_20_adam_steps")


VARIANTS = {
    "adam with weight decay": {**ADAM, "weight_decay": 0.01},
    "adam with cosine": {**ADAM, "schedule": "cosine"},
    "adam with steps": {**ADAM, **STEP},
    "adam with one step to nothing": {**ADAM, **STEP, "gamma": 0.0},
    "adam with other betas": {**ADAM, "beta1": 0.5, "beta2": 0.9, "eps": 1e-4},
    "adam without first moment": {**ADAM, "beta1": 0.0},
    "adam with beta2 close to 1": {**ADAM, "beta2": 0.99999},
    "adam with betas closer to 1": {**ADAM, "beta1": 0.9999, "beta2": 0.999999},
    "sgd with cosine": {**SGD, "schedule": "cosine"},
    "sgd with steps": {**SGD, **STEP},
    "sgd with a step after the last epoch": {**SGD, **STEP, "step_epochs": 7},
    "sgd without momentum": {**SGD, "beta1": 0.0},
    "sgd with large weight decay": {**SGD, "weight_decay": 0.1},
    "sgd without weight decay": {**SGD, "weight_decay": 0.0},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("density", [1.0, 0.1])
def test_optimizers(simd_level, variant, density):
    optimizer = VARIANTS[variant]
    steps = "parameters_20_adam_steps" if optimizer["optimizer"] == "adam" else "parameters_100_sgd_steps"
    assert_follows(Case((3, 24, 10, 2), "mse", density), optimizer, 7, steps)


@pytest.mark.parametrize("magnitude", [1e15, 1.0, 1e-4, 1e-7, 1e-9, 1e-12])
def test_first_step_of_adam(simd_level, magnitude):
    # lr * g / (|g| + eps): with zero parameters only the output biases have a gradient, 2 * mean(-y) / n_L
    case = Case((3, 24, 5), "mse", 1.0, n=32)
    p, mask, widths, x, y, *rest = case.arguments()
    for dense_from in (DENSE, COMPRESSED):
        options = {**case.options(ADAM, 1), "dense_from": dense_from}
        step = ops.mlp_trainer(p * 0, mask, widths, x, y * magnitude, *rest, **options)[0]
        gradient = -2 * (y * magnitude).double().mean(1) / 5
        expected = -1e-3 * gradient / (gradient.abs() + 1e-8)
        rtol, _ = TOLERANCES["one_adam_step"]
        torch.testing.assert_close(step[:, -5:].double(), expected, rtol=rtol, atol=0)
        assert bool((step[:, :-5] == 0).all())


def test_adam_without_eps_leaves_alone_what_has_no_gradient(simd_level):
    # with zero parameters only the output biases have one; torch computes 0 / 0 for all others
    case = Case((3, 24, 5), "mse", 1.0, n=32)
    p, *rest = case.arguments()
    for dense_from in (DENSE, COMPRESSED):
        options = {**case.options({**ADAM, "eps": 0.0}, 1), "dense_from": dense_from}
        step = ops.mlp_trainer(p * 0, *rest, **options)[0]
        assert bool((step[:, :-5] == 0).all())
        assert bool((step[:, -5:].abs() > 0.9e-3).all())


def test_adam_survives_a_gradient_whose_square_overflows(simd_level):
    # v = inf in float32: torch divides by it and takes no step; NaN would end a network that only stumbled
    case = Case((3, 24, 5), "mse", 1.0, n=32)
    p, mask, widths, x, y, *rest = case.arguments()
    for dense_from in (DENSE, COMPRESSED):
        options = {**case.options(ADAM, 1), "dense_from": dense_from}
        step = ops.mlp_trainer(p * 0, mask, widths, x, y * 1e22, *rest, **options)[0]
        assert bool((step.abs() < 1.1e-3).all())


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize(("widths", "loss"), SHAPES, ids=str)
def test_gradients_of_one_step(simd_level, widths, loss, density):
    # These draws reach 1.3e-6. Where samples cancel, float32 has no more to give: 3e-5, 2e-5 in torch.
    rtol, _ = TOLERANCES["gradient_of_one_step"]
    for n in (1, 6, 32, 40, 64, 100):
        case = Case(widths, loss, density, n=n, seed=4000 + n)
        p, mask, _, x, y, _, _, dataset, _ = case.arguments()
        truth = torch.stack(
            [plain_gradients(p[i], mask[i], widths, x[dataset[i]], y[dataset[i]], loss) for i in range(len(p))]
        )
        for dense_from in (DENSE, COMPRESSED, None):
            got = ops.mlp_gradients(p, mask, widths, x, y, dataset, loss=loss, dense_from=dense_from)
            assert got.dtype == torch.float32
            assert bool((got[~mask] == 0).all())
            for w, b in slices(widths):
                layer = slice(w.start, b.stop)
                largest = truth[:, layer].abs().amax(1, keepdim=True)
                error = (got[:, layer].double() - truth[:, layer]).abs()
                assert bool((error <= rtol * largest).all()), (n, dense_from, float((error / largest).max()))


COLLAPSES = {
    "a layer without weights": [("w", 1)],
    "the first layer without weights": [("w", 0)],
    "the last layer without weights": [("w", 2)],
    "no biases": [("b", 0), ("b", 1), ("b", 2)],
    "a layer without weights, no biases": [("w", 1), ("b", 0), ("b", 1), ("b", 2)],
    "nothing": [("w", 0), ("w", 1), ("w", 2), ("b", 0), ("b", 1), ("b", 2)],
}


def collapsed(mask, widths, parts):
    mask = mask.clone()
    for kind, at in parts:
        w, b = list(slices(widths))[at]
        mask[0, w if kind == "w" else b] = False  # the second network stays whole
    return mask


@pytest.mark.parametrize("collapse", COLLAPSES)
@pytest.mark.parametrize("optimizer", [SGD, ADAM, {**SGD, "weight_decay": 0.0}], ids=["sgd", "adam", "sgd no decay"])
def test_collapsed_networks(simd_level, collapse, optimizer):
    for loss in LOSSES:
        case = CollapsedCase((3, 21, 9, 2), loss, 0.5, collapse=collapse)
        assert_follows(case, optimizer, 6, "parameters_20_adam_steps", case.arguments())
        p, mask, widths, x, y, _, _, dataset, _ = case.arguments()
        for dense_from in (DENSE, COMPRESSED):
            got = ops.mlp_gradients(p, mask, widths, x, y, dataset, loss=loss, dense_from=dense_from)
            truth = plain_gradients(p[0], mask[0], widths, x[0], y[0], loss)
            assert bool((got[0, truth == 0] == 0).all())
            torch.testing.assert_close(got[0].double(), truth, rtol=1e-4, atol=1e-6)


class CollapsedCase(Case):
    """A Case whose first network lost whole layers."""

    def __init__(self, *args, collapse: str, **kwargs):
        super().__init__(*args, **kwargs)
        object.__setattr__(self, "collapse", collapse)

    def __hash__(self):
        return hash((super().__hash__(), self.collapse))

    def __eq__(self, other):
        return super().__eq__(other) and self.collapse == other.collapse

    def arguments(self):
        p, mask, *rest = super().arguments()
        return p, collapsed(mask, self.widths, COLLAPSES[self.collapse]), *rest


def bits(t: torch.Tensor) -> torch.Tensor:
    return t.view(torch.int32)


@pytest.mark.parametrize("optimizer", [SGD, ADAM, {**ADAM, "weight_decay": 0.1}], ids=["sgd", "adam", "adam decay"])
@pytest.mark.parametrize("density", [0.9, 0.5, 0.02])
def test_pruned_parameters_are_bitwise_untouched(simd_level, optimizer, density):
    case = Case((3, 40, 35, 4), "cross_entropy", density)
    p, mask, *rest = case.arguments()
    g = torch.Generator().manual_seed(1)
    # NaNs with payloads, infinities, denormals, huge numbers, -0
    poison = torch.tensor([0x7FC01234, -0x3EDCC, 0x7F800000, -0x800000, 1, 0x7F7FFFFF, -0x80000000], dtype=torch.int32)
    poison = poison[torch.randint(0, len(poison), p.shape, generator=g)].view(torch.float32)
    poisoned = torch.where(mask, p, poison)
    before = bits(poisoned).clone()
    for dense_from in (DENSE, COMPRESSED, None):
        clean = train(case, optimizer, 3, (p, mask, *rest), dense_from=dense_from)
        dirty = train(case, optimizer, 3, (poisoned, mask, *rest), dense_from=dense_from)
        assert torch.equal(bits(dirty[0])[~mask], before[~mask])
        assert torch.equal(dirty[0][mask], clean[0][mask])
        assert all(torch.equal(a, b) for a, b in zip(dirty[3:], clean[3:], strict=True))
        gradients = [
            ops.mlp_gradients(q, mask, *rest[:3], rest[5], loss="cross_entropy", dense_from=dense_from)
            for q in (p, poisoned)
        ]
        assert torch.equal(*gradients)
    assert torch.equal(bits(poisoned), before)


def test_inputs_are_not_changed():
    case = Case((3, 12, 2))
    arguments = case.arguments()
    before = [a.clone() if isinstance(a, torch.Tensor) else list(a) for a in arguments]
    train(case, ADAM, 2, arguments)
    for a, b in zip(arguments, before, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=["sgd", "adam"])
@pytest.mark.parametrize("density", [1.0, 0.1])
def test_alone_in_a_batch_and_with_two_threads_are_bitwise_equal(simd_level, set_threads, optimizer, density):
    for loss in LOSSES:
        case = Case((3, 50, 33, 4), loss, density, n_networks=5, n_datasets=2)
        p, mask, widths, *data, dataset, keys = case.arguments()
        together = train(case, optimizer, 3)
        set_threads(2)
        assert all(torch.equal(a, b) for a, b in zip(together, train(case, optimizer, 3), strict=True))
        set_threads(1)
        for i in range(5):
            one = slice(i, i + 1)
            alone = train(case, optimizer, 3, (p[one], mask[one], widths, *data, dataset[one], keys[one]))
            own_data = [d[dataset[i] : dataset[i] + 1] for d in data]
            own = (p[one], mask[one], widths, *own_data, torch.zeros(1, dtype=torch.int64), keys[one])
            for a, b, c in zip(together, alone, train(case, optimizer, 3, own), strict=True):
                assert torch.equal(a[one] if a.numel() else a, b)
                assert torch.equal(b, c)
        gradients = ops.mlp_gradients(p, mask, widths, *data[:2], dataset, loss=loss)
        set_threads(2)
        assert torch.equal(gradients, ops.mlp_gradients(p, mask, widths, *data[:2], dataset, loss=loss))
        alone = ops.mlp_gradients(p[3:4], mask[3:4], widths, *data[:2], dataset[3:4], loss=loss)
        assert torch.equal(gradients[3:4], alone)


def test_networks_of_many_densities_on_two_threads(set_threads):
    """Threads take those that keep most first: each still gets its own results."""
    case = Case((3, 18, 4), "mse", 1.0, n_networks=6)
    p, mask, *rest = case.arguments()
    keep = torch.linspace(0.1, 1, len(mask))[:, None]
    mask = torch.rand(mask.shape, generator=torch.Generator().manual_seed(1)) < keep
    arguments = (p * mask, mask, *rest)
    on_one = train(case, ADAM, 3, arguments)
    set_threads(2)
    for a, b in zip(on_one, train(case, ADAM, 3, arguments), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("density", [1.0, 0.25])
@pytest.mark.parametrize("widths", [(3, 301, 299, 4), (3, 308, 290, 4)], ids=str)
def test_threads_that_share_one_network_change_nothing(simd_level, set_threads, widths, density):
    # weights times batch above network.h's kSharedFrom; widths that no number of threads or lanes divides
    batch_size = int(160 / density)
    case = Case(widths, "mse", density, n=batch_size + 40, batch_size=batch_size, n_networks=1, n_datasets=1)
    assert density * widths[1] * widths[2] * batch_size > 13_000_000
    alone = train(case, ADAM, 2)
    for n in (2, 3, 5):
        set_threads(n)
        assert all(torch.equal(a, b) for a, b in zip(alone, train(case, ADAM, 2), strict=True))


def test_a_shared_batch_of_many_tiles_changes_nothing(set_threads):
    # kept weights times tiles of 32 samples beyond network.h's kTilesApartUpTo; one in 16 of 299 neurons is dead
    case = Case((3, 301, 299, 4), "mse", 0.5, n=8000, batch_size=8000, n_networks=1, n_datasets=1)
    p, mask, widths, x, y, _, _, dataset, _ = case.arguments()
    assert 0.9 * 0.5 * 301 * 299 * 8000 / 32 > 2**23
    alone = ops.mlp_gradients(p, mask, widths, x, y, dataset, loss="mse", dense_from=COMPRESSED)
    set_threads(2)
    for _ in range(3):
        assert torch.equal(alone, ops.mlp_gradients(p, mask, widths, x, y, dataset, loss="mse", dense_from=COMPRESSED))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dense_from", [DENSE, COMPRESSED])
def test_a_diverging_network_says_so_and_leaves_its_neighbours_alone(simd_level, loss, dense_from):
    case = Case((3, 40, 20, 4), loss, 0.7, n_networks=4)
    p, *rest = case.arguments()
    healthy = train(case, SGD, 3, dense_from=dense_from)
    p[1] *= 1e15  # overflows in the first forward pass or the first update
    sick = train(case, SGD, 3, (p, *rest), dense_from=dense_from)
    assert not bool(torch.isfinite(sick[3][1]).any())
    assert not bool(torch.isfinite(sick[4][1, 1:]).any())
    for i in (0, 2, 3):
        for a, b in zip(healthy, sick, strict=True):
            assert torch.equal(a[i], b[i]) if a.numel() else True


def test_a_huge_learning_rate_is_no_error_and_is_seen(simd_level):
    for loss in LOSSES:
        got = train(Case((3, 40, 20, 4), loss), {**SGD, "lr": 1e20, "weight_decay": 0.0}, 3)
        assert not bool(torch.isfinite(got[3][:, -1]).any())
        assert not bool(torch.isfinite(got[4][:, -1]).any())


@pytest.mark.parametrize("loss", LOSSES)
def test_metric(simd_level, loss):
    case = Case((3, 24, 4), loss, 0.7)
    p, mask, widths, _, _, x_test, y_test, dataset, _ = case.arguments()
    got = train(case, ADAM, 2)
    for column, parameters in ((0, p), (2, got[0])):
        for i in range(2):
            d = int(dataset[i])
            theta = torch.where(mask[i], parameters[i], 0.0).double()
            output = reference.mlp_trainer.__globals__["forward"](theta, x_test[d].double(), widths)
            if loss == "cross_entropy":
                expected = (output.argmax(1) == y_test[d]).double().mean()
                assert got[5][i, column] == expected
            else:
                y = y_test[d].double()
                factor = torch.stack([torch.linalg.lstsq(output[:, [o]], y[:, [o]]).solution[0, 0] for o in range(4)])
                expected = ((output * factor - y) ** 2).mean()
                torch.testing.assert_close(got[5][i, column], expected, rtol=1e-5, atol=0)


def test_rescaled_mse_of_a_perfect_fit_is_no_negative_number(simd_level):
    for seed in range(20):
        case = Case((2, 9, 3), "mse", 1.0, n_networks=1, seed=seed)
        p, mask, widths, x, y, x_test, _, dataset, keys = case.arguments()
        theta = p[0].double()
        y_test = (reference.mlp_trainer.__globals__["forward"](theta, x_test[0].double(), widths) * 0.37).float()[None]
        y_test = y_test.expand(2, -1, -1)
        metric = ops.mlp_trainer(p, mask, widths, x, y, x_test, y_test, dataset, keys, **case.options(ADAM, 0))[5]
        assert 0 <= metric.item() < 1e-12


def test_a_network_that_is_always_zero_has_the_metric_of_zero(simd_level):
    case = Case((3, 6, 2), "mse")
    p, mask, *rest = case.arguments()
    metric = ops.mlp_trainer(p, mask & False, *rest, **case.options(ADAM, 0))[5]
    expected = (rest[4] ** 2).double().mean((1, 2))
    torch.testing.assert_close(metric[:, 0], expected, rtol=1e-6, atol=0)


def test_compiles_without_a_graph_break():
    case = Case((3, 6, 2))
    p, *rest = case.arguments()
    compiled = torch.compile(
        lambda p: ops.mlp_trainer(p, *rest, **case.options(ADAM, 1))[0], backend="eager", fullgraph=True
    )
    assert torch.equal(compiled(p), train(case, ADAM, 1)[0])


def test_no_epoch_and_no_network():
    case = Case((3, 6, 2))
    got = train(case, ADAM, 0)
    assert torch.equal(got[0], case.arguments()[0])
    assert got[3].shape == (2, 0)
    assert got[4].shape == (2, 1)
    p, mask, widths, *data, dataset, keys = case.arguments()
    got = train(case, ADAM, 2, (p[:0], mask[:0], widths, *data, dataset[:0], keys[:0]))
    assert [tuple(t.shape) for t in got] == [
        (0, n_parameters(widths)),
        (0,),
        (0, n_parameters(widths)),
        (0, 2),
        (0, 3),
        (0, 3),
    ]


def test_non_contiguous(simd_level):
    case = Case((3, 12, 2), "mse", n_networks=4)
    p, mask, widths, x, y, x_test, y_test, dataset, keys = case.arguments()

    def strided(t):
        return torch.stack([t, t], dim=-1)[..., 0]

    views = [strided(t) for t in (p, mask)], [strided(t) for t in (x, y, x_test, y_test, dataset, keys)]
    assert not views[0][0].is_contiguous()
    got = train(case, SGD, 2, (*views[0], tuple(widths), *views[1]))
    assert all(torch.equal(a, b) for a, b in zip(got, train(case, SGD, 2), strict=True))


def test_batches_differ_between_keys_and_repeat_for_equal_keys(simd_level):
    case = Case((3, 12, 2), n_networks=4, n_datasets=1)
    p, mask, widths, *data, dataset, keys = case.arguments()
    keys = torch.tensor([[7, 0], [7, 1], [8, 0], [7, 0]])
    got = train(case, SGD, 1, (p[:1].expand(4, -1), mask[:1].expand(4, -1), widths, *data, dataset, keys))
    assert torch.equal(got[0][0], got[0][3])
    assert not torch.equal(got[0][0], got[0][1])
    assert not torch.equal(got[0][0], got[0][2])


@pytest.mark.parametrize(
    "optimizer", [SGD, {**ADAM, "schedule": "cosine"}, {**SGD, **STEP}], ids=["sgd", "adam", "sgd with steps"]
)
def test_twin_is_the_plain_loop(optimizer):
    rtol, atol = TOLERANCES["float64"]
    for loss in LOSSES:
        case = Case((3, 24, 10, 2), loss, 0.4)
        p, mask, *rest = case.arguments()
        got = reference.mlp_trainer(p.double(), mask, *rest, **case.options(optimizer, 5))
        truth = plain_training(case, tuple(optimizer.items()), 5)
        for a, b in zip((got[0], got[3], got[4]), truth, strict=True):
            torch.testing.assert_close(a, b, rtol=1e3 * rtol, atol=1e3 * atol)  # 15 steps
        gradients = reference.mlp_gradients(p.double(), mask, rest[0], *rest[1:3], rest[5], loss=loss)
        expected = plain_gradients(p[1], mask[1], rest[0], rest[1][1], rest[2][1], loss)
        torch.testing.assert_close(gradients[1], expected, rtol=rtol, atol=atol)


def test_labels_and_numbers_out_of_range():
    case = Case((3, 6, 4))
    p, mask, widths, x, y, x_test, y_test, dataset, keys = case.arguments()
    for name, wrong in {
        "y_train": (p, mask, widths, x, y + 4, x_test, y_test, dataset, keys),
        "y_test": (p, mask, widths, x, y, x_test, y_test - 4, dataset, keys),
        "dataset": (p, mask, widths, x, y, x_test, y_test, dataset + 2, keys),
        "keys": (p, mask, widths, x, y, x_test, y_test, dataset, keys[:1]),
        "widths": (p, mask, [3], x, y, x_test, y_test, dataset, keys),
        "parameters": (p, mask, [3, 7, 4], x, y, x_test, y_test, dataset, keys),
        "x_test": (p, mask, widths, x, y, x_test[:1], y_test, dataset, keys),
        "x_train": (p, mask, widths, x[:, :0], y[:, :0], x_test, y_test, dataset, keys),
    }.items():
        with pytest.raises(ValueError, match=name):
            train(case, SGD, 1, wrong)
    for name, options in {"epochs": (SGD, -1), "density": ({**SGD, "density": math.nan}, 1)}.items():
        with pytest.raises(ValueError, match=name):
            train(case, *options)


def test_sizes_beyond_32_bits_are_refused():
    def arguments(widths, n):
        one = torch.zeros(1, dtype=torch.int64)
        x, y = torch.zeros(1, 1, widths[0]).expand(1, n, -1), torch.zeros(1, 1, dtype=torch.int64).expand(1, n)
        p = sum((i + 1) * o for i, o in itertools.pairwise(widths))
        parameters, mask = torch.zeros(1, 1).expand(1, p), torch.ones(1, 1, dtype=torch.bool).expand(1, p)
        return parameters, mask, widths, x, y, x[:, :1], y[:, :1], one, one.expand(1, 2)

    options = {"loss": "cross_entropy", "epochs": 1, **ADAM}
    with pytest.raises(ValueError, match=r"^batch_size: "):
        ops.mlp_trainer(*arguments([2, 16, 4], 2**27), batch_size=2**27, **options)
    with pytest.raises(ValueError, match=r"^widths: .* weights in a layer"):
        ops.mlp_trainer(*arguments([2, 2**15, 2**16, 4], 32), batch_size=32, **options)
    wide = arguments([2, 16, 4], 2**27)
    with pytest.raises(ValueError, match=r"^x: "):
        ops.mlp_gradients(*wide[:5], wide[7], loss="cross_entropy")
