"""mlp_trainer stops a network that became non-finite: when, with what it reports, at no further cost, alone."""

from __future__ import annotations

import math

import pytest
import torch
from ops.cases import ADAM, SGD, Case

from pns_fast import ops, reference

DENSE, COMPRESSED = 0.0, 2.0
WIDTHS, SICK = (3, 24, 10, 4), 1


@pytest.fixture(autouse=True)
def one_thread(set_threads):
    set_threads(1)


def make_case(loss: str) -> Case:
    return Case(WIDTHS, loss, 0.7, n=32, n_networks=4, n_datasets=4)


def large_inputs(case: Case) -> tuple:
    """One batch an epoch: the first loss is finite, and the step after it ruins the network of these inputs."""
    p, mask, widths, x, *rest = case.arguments()
    x[SICK] *= 1e17
    return p, mask, widths, x, *rest


def large_parameters(case: Case) -> tuple:
    """Overflows in the first forward pass: edge-popup moves no parameter."""
    p, *rest = case.arguments()
    p[SICK] *= 1e18
    return p, *rest


def assert_stopped_in(epoch: int, result: tuple) -> None:
    train_loss, test_loss, metric = (curve[SICK] for curve in result[3:])
    assert train_loss[: epoch + 1].isfinite().tolist() == [True] * epoch + [False]
    for after in (train_loss[epoch + 1 :], test_loss[epoch + 1 :], metric[epoch + 1 :]):
        assert after.numel() > 0
        assert after.isnan().all()


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("dense_from", [DENSE, COMPRESSED])
@pytest.mark.parametrize(
    ("arguments", "epoch", "scored"),
    [(large_inputs, 1, False), (large_parameters, 0, False), (large_parameters, 0, True)],
    ids=["train", "train from the start", "edge-popup"],
)
def test_the_others_are_bitwise_what_they_are_without_it(simd_level, loss, dense_from, arguments, epoch, scored):
    case = make_case(loss)
    options = {**case.options(SGD, 5), "dense_from": dense_from}
    if scored:
        options |= {"scores": case.with_(seed=1).arguments()[0], "density": 0.5}
    healthy = ops.mlp_trainer(*case.arguments(), **options)
    sick = ops.mlp_trainer(*arguments(case), **options)
    assert_stopped_in(epoch, sick)
    for i in {0, 1, 2, 3} - {SICK}:
        assert all(torch.equal(a[i], b[i]) for a, b in zip(healthy, sick, strict=True) if a.numel())
    # what it leaves is what it was when it stopped
    shorter = ops.mlp_trainer(*arguments(case), **{**options, "epochs": epoch + 1})
    for a, b in zip(sick[:3], shorter[:3], strict=True):
        if a.numel():
            torch.testing.assert_close(a[SICK], b[SICK], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("optimizer", [SGD, {**SGD, "schedule": "step", "step_epochs": 2, "gamma": 1e30}])
def test_the_twin_stops_at_the_same_epoch(simd_level, loss, optimizer):
    case = make_case(loss)
    got = ops.mlp_trainer(*large_inputs(case), **case.options(optimizer, 5))
    twin = reference.mlp_trainer(*large_inputs(case), **case.options(optimizer, 5))
    for a, b in zip(got[3:], twin[3:], strict=True):
        assert torch.equal(a.isfinite(), b.isfinite())
    assert torch.equal(got[0].isfinite().all(1), twin[0].isfinite().all(1))


def test_the_twin_of_edge_popup_ranks_nan_lowest(simd_level):
    case = make_case("mse")
    scores = case.with_(seed=1).arguments()[0]
    scores[0, :20] = math.nan
    options = {**case.options(SGD, 0), "scores": scores, "density": 0.5}
    assert torch.equal(
        ops.mlp_trainer(*case.arguments(), **options)[2], reference.mlp_trainer(*case.arguments(), **options)[2]
    )


def test_annealing_hands_out_the_density_asked_for(simd_level):
    case = make_case("mse")
    scores = case.with_(seed=1).arguments()[0]
    options = {**case.options(SGD, 5), "scores": scores, "density": 0.1, "anneal": True}
    sick = ops.mlp_trainer(*large_parameters(case), **options)
    assert_stopped_in(0, sick)
    assert len(set(sick[2].sum(1).tolist())) == 1


@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=["sgd", "adam"])
def test_a_stopped_network_costs_nothing(simd_level, optimizer):
    # two million epochs of this network take minutes; it is stopped after the first
    case = Case((3, 40, 20, 4), n_networks=1, n_datasets=1)
    p, *rest = case.arguments()
    p[:] = math.nan

    def late(done, total):
        if done < total:
            pytest.fail("a network that is not finite goes on")

    result = ops.mlp_trainer(p, *rest, **case.options(optimizer, 2_000_000), progress=late)
    assert result[3].isnan().all()


def test_progress_sees_denormals_though_training_flushes_them():
    case, smallest, seen = Case((3, 40, 20, 4), n_networks=1, n_datasets=1), [5e-324], []

    def progress(done, total):
        seen.append((done < total, smallest[0] * 1.0 > 0))

    ops.mlp_trainer(*case.arguments(), **case.options(ADAM, 100_000), progress=progress)
    assert (True, True) in seen  # in the middle of the call
    assert all(is_kept for _, is_kept in seen)


def test_a_gradient_that_is_not_finite_is_handed_out(simd_level):
    case = make_case("mse")
    p, mask, widths, x, y, _, _, dataset, _ = case.arguments()
    p[SICK] = math.nan
    gradient = ops.mlp_gradients(p, mask, widths, x, y, dataset, loss="mse")
    assert gradient[SICK].isnan().any()
    assert gradient[0].isfinite().all()
