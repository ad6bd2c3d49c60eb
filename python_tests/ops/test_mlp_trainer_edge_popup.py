"""Edge-popup in mlp_trainer: exact counts, the straight-through gradient, the twin's masks over hundreds of steps."""

from __future__ import annotations

import math

import pytest
import torch
from ops.cases import ADAM, STEP, Case, plain_gradients, slices
from tolerances import TOLERANCES

from pns_fast import ops, reference

POPUP = {"optimizer": "sgd", "lr": 0.1, "beta1": 0.9, "weight_decay": 5e-4, "schedule": "cosine"}
DENSE, COMPRESSED = 0.0, 2.0


@pytest.fixture(autouse=True)
def one_thread(set_threads):
    set_threads(1)


def initial_scores(case: Case) -> torch.Tensor:
    """Kaiming uniform (a = sqrt 5) for weights, zero for biases: spec.md."""
    g = torch.Generator().manual_seed(case.seed + 1)
    scores = torch.zeros_like(case.arguments()[0])
    for (w, _), n_in in zip(slices(case.widths), case.widths[:-1], strict=True):
        scores[:, w] = (torch.rand(scores[:, w].shape, generator=g) * 2 - 1) / math.sqrt(n_in)
    return scores


def train(case, epochs, density, anneal=False, optimizer=POPUP, scores=None, arguments=None, **changes):
    scores = initial_scores(case) if scores is None else scores
    options = {"scores": scores, "density": density, "anneal": anneal, **case.options(optimizer, epochs), **changes}
    return ops.mlp_trainer(*(arguments or case.arguments()), **options)


def counts(mask, widths, density):
    """Kept and expected counts of every part of every network."""
    for part in (p for pair in slices(widths) for p in pair):
        n = part.stop - part.start
        yield mask[:, part].sum(1).tolist(), [math.ceil(density * n - 1e-9)] * len(mask)


@pytest.mark.parametrize("density", [0.0, 0.005, 0.1, 1 / 3, 0.5, 1.0])
@pytest.mark.parametrize("widths", [(2, 33, 20, 4), (1, 7, 1), (3, 40, 3)], ids=str)
def test_counts_are_exact_and_parameters_stay(simd_level, widths, density):
    case = Case(widths, "mse")
    for dense_from in (DENSE, COMPRESSED):
        got = train(case, 2, density, dense_from=dense_from)
        assert torch.equal(got[0], case.arguments()[0])
        assert all(kept == expected for kept, expected in counts(got[2], widths, density))
        assert torch.equal(got[1], got[1].nan_to_num())


def test_ties_at_zero_bias_scores_go_to_the_lowest_index(simd_level):
    case = Case((2, 33, 20, 4))
    for dense_from in (DENSE, COMPRESSED):
        mask = train(case, 0, 0.3, dense_from=dense_from)[2]
        for _, b in slices(case.widths):
            k = math.ceil(0.3 * (b.stop - b.start) - 1e-9)
            assert mask[:, b][:, :k].all()
            assert not mask[:, b][:, k:].any()
        constant = train(case, 0, 0.3, scores=torch.full_like(initial_scores(case), -0.5), dense_from=dense_from)[2]
        for w, _ in slices(case.widths):
            k = math.ceil(0.3 * (w.stop - w.start) - 1e-9)
            assert constant[:, w].nonzero()[:, 1].max() == k - 1


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_the_gradient_passes_straight_through_to_all_scores(simd_level, loss, density):
    case = Case((3, 24, 10, 4), loss, n=32)  # one step
    p, _, widths, x, y, _, _, dataset, _ = case.arguments()
    scores = initial_scores(case)
    before = train(case, 0, density)[2]
    rtol, _ = TOLERANCES["gradient_of_one_step"]
    for dense_from in (DENSE, COMPRESSED):
        plain = {"optimizer": "sgd", "lr": 1.0, "beta1": 0.0}
        after = train(case, 1, density, optimizer=plain, dense_from=dense_from)[1]
        for i in range(2):
            theta = torch.where(before[i], p[i], 0.0)
            everywhere = torch.ones_like(before[i])
            d = int(dataset[i])
            grad = plain_gradients(theta, everywhere, widths, x[d], y[d], loss)
            sign = torch.where(scores[i] < 0, -1.0, 1.0).double()
            expected = grad * p[i].double() * sign
            step = (scores[i].double() - after[i].double()).abs()
            assert bool((step > 0).sum() > before[i].sum() * 0.5)
            for w, b in slices(widths):
                layer = slice(w.start, b.stop)
                error = (scores[i, layer].double() - after[i, layer].double() - expected[layer]).abs()
                # the step is read off scores of size 1, rounded to 6e-8
                assert bool((error <= rtol * expected[layer].abs().max() + 1.2e-7).all()), float(error.max())


TWIN_CASES = [
    (widths, loss, density, anneal)
    for widths in ((2, 33, 20, 4), (1, 7, 1), (3, 40, 3))
    for loss in ("cross_entropy", "mse")
    for density, anneal in ((0.5, False), (0.1, False), (0.1, True))
    if widths[-1] > 1 or loss == "mse"
]


def mask_differs_within_rounding(got, expected, scores, widths):
    """Where the masks differ the score is within 1e-3 of the threshold: the k-th and the next may change places."""
    for part in (p for pair in slices(widths) for p in pair):
        for i in range(len(got)):
            magnitude, kept = scores[i, part].abs(), expected[i, part]
            wrong = got[i, part] != kept
            if wrong.any():
                threshold = magnitude[kept].min()
                if bool(((magnitude[wrong] - threshold).abs() > 1e-3 * magnitude.max()).any()):
                    return False
    return True


@pytest.mark.parametrize(("widths", "loss", "density", "anneal"), TWIN_CASES, ids=str)
def test_masks_are_the_twins_for_200_steps(widths, loss, density, anneal, simd_level, twin_results):
    # The twin runs in float64. A pair of scores closer than float32 rounds may swap; after that the two runs are
    # two valid ones, so a difference is accepted only next to the threshold. In the first 20 steps there is none.
    case = Case(widths, loss)
    for epochs in (7, 67):
        expected = twin_results(case, epochs, density, anneal)
        for dense_from in (DENSE, COMPRESSED):
            got = train(case, epochs, density, anneal, dense_from=dense_from)
            assert all(kept == k for kept, k in counts(got[2], widths, density))
            if epochs == 7:
                rtol, atol = TOLERANCES["edge_popup_scores"]
                assert torch.equal(got[2], expected[2])
                torch.testing.assert_close(got[1].double(), expected[1], rtol=rtol, atol=atol)
                for column in (3, 4):
                    rtol, atol = TOLERANCES["loss_curve"]
                    torch.testing.assert_close(got[column], expected[column], rtol=rtol, atol=atol)
            assert mask_differs_within_rounding(got[2], expected[2], expected[1], widths)


@pytest.fixture(scope="module")
def twin_results():
    cache = {}

    def run(case, epochs, density, anneal):
        key = (case, epochs, density, anneal)
        if key not in cache:
            p, mask, *rest = case.arguments()
            options = {"scores": initial_scores(case).double(), "density": density, "anneal": anneal}
            cache[key] = reference.mlp_trainer(p.double(), mask, *rest, **case.options(POPUP, epochs), **options)
        return cache[key]

    return run


def test_annealing_keeps_a_shrinking_share(simd_level):
    case = Case((2, 33, 20, 4))
    for epochs in (1, 4, 10):
        got = train(case, epochs, 0.1, anneal=True)
        assert all(kept == expected for kept, expected in counts(got[2], case.widths, 0.1))
    # before training the first epoch's density 0.1^(1/4) is in force
    first = train(case, 4, 0.1, anneal=True)[4][:, 0]
    assert torch.equal(first, train(case, 0, 0.1**0.25)[4][:, 0])


def test_no_epoch_with_annealing_keeps_the_density_asked_for(simd_level):
    case = Case((2, 33, 20, 4))
    mask = train(case, 0, 0.3, anneal=True)[2]
    assert all(kept == expected for kept, expected in counts(mask, case.widths, 0.3))
    assert torch.equal(
        mask,
        reference.mlp_trainer(
            *case.arguments(), **case.options(POPUP, 0), scores=initial_scores(case), density=0.3, anneal=True
        )[2],
    )


def test_adam_moves_scores_too(simd_level):
    case = Case((3, 24, 2), "mse")
    # away from 0: at 0 a score's sign, and with it the sign of Adam's whole step, is a matter of rounding
    scores = initial_scores(case)
    scores = torch.where(scores < 0, scores - 0.1, scores + 0.1)
    p, mask, *rest = case.arguments()
    options = {**case.options(ADAM, 7), "density": 0.5}
    expected = reference.mlp_trainer(p.double(), mask, *rest, **options, scores=scores.double())
    rtol, atol = TOLERANCES["parameters_20_adam_steps"]
    for dense_from in (DENSE, COMPRESSED):
        got = train(case, 7, 0.5, optimizer=ADAM, scores=scores, dense_from=dense_from)
        torch.testing.assert_close(got[1].double(), expected[1], rtol=rtol, atol=atol)


def test_scores_follow_a_step_schedule(simd_level):
    case, optimizer = Case((3, 24, 2), "mse"), {**POPUP, **STEP}
    p, mask, *rest = case.arguments()
    options = {**case.options(optimizer, 7), "density": 0.5}
    expected = reference.mlp_trainer(p.double(), mask, *rest, **options, scores=initial_scores(case).double())
    rtol, atol = TOLERANCES["edge_popup_scores"]
    for dense_from in (DENSE, COMPRESSED):
        got = train(case, 7, 0.5, optimizer=optimizer, dense_from=dense_from)
        torch.testing.assert_close(got[1].double(), expected[1], rtol=rtol, atol=atol)


def test_alone_in_a_batch_and_with_two_threads_are_bitwise_equal(simd_level, set_threads):
    case = Case((2, 40, 20, 4), n_networks=4)
    p, mask, widths, *data, dataset, keys = case.arguments()
    scores = initial_scores(case)
    together = train(case, 4, 0.3)
    set_threads(2)
    assert all(torch.equal(a, b) for a, b in zip(together, train(case, 4, 0.3), strict=True))
    for i in range(4):
        one = slice(i, i + 1)
        arguments = (p[one], mask[one], widths, *data, dataset[one], keys[one])
        alone = train(case, 4, 0.3, scores=scores[one], arguments=arguments)
        assert all(torch.equal(a[one], b) for a, b in zip(together, alone, strict=True))


def test_threads_that_share_one_network_change_nothing(simd_level, set_threads):
    case = Case((3, 301, 299, 4), n=200, batch_size=160, n_networks=1, n_datasets=1)
    alone = train(case, 2, 0.3)
    for n in (2, 3):
        set_threads(n)
        assert all(torch.equal(a, b) for a, b in zip(alone, train(case, 2, 0.3), strict=True))


@pytest.mark.parametrize("kind", ["equal", "few values", "two jumps"])
def test_selection_is_exact_whatever_the_last_threshold_foretold(simd_level, kind):
    """Ties by the thousand, and scores that leap over the bracket around the last threshold."""
    case = Case((2, 40, 30, 3), n_networks=2)
    p, _, widths, *_ = case.arguments()
    generator = torch.Generator().manual_seed(3)
    scores = {
        "equal": torch.full_like(p, 0.5),
        "few values": torch.randint(-3, 4, p.shape, generator=generator) / 8,
        "two jumps": torch.randn(p.shape, generator=generator) * 1e-6,
    }[kind]
    lr = {"two jumps": 1e3}.get(kind, 0.1)
    optimizer = {**POPUP, "lr": lr}
    for epochs in (0, 1, 3):
        got = train(case, epochs, 0.3, scores=scores, optimizer=optimizer)
        assert torch.equal(got[2], top_by_rank(got[1].abs(), widths, 0.3))


def top_by_rank(magnitude, widths, density):
    """The mask of the largest magnitudes of each layer's weights and biases, ties to the lowest index."""
    mask = torch.zeros_like(magnitude, dtype=torch.bool)
    for part in [p for pair in slices(widths) for p in pair]:
        keep = math.ceil(density * (part.stop - part.start) - 1e-9)
        best = magnitude[:, part].sort(dim=1, descending=True, stable=True).indices[:, :keep]
        mask[:, part] = torch.zeros_like(mask[:, part]).scatter_(1, best, True)
    return mask


def test_the_given_mask_does_not_matter(simd_level):
    case = Case((2, 33, 4))
    p, mask, *rest = case.arguments()
    expected = train(case, 2, 0.3)
    for other in (mask & False, mask | True):
        got = train(case, 2, 0.3, arguments=(p, other, *rest))
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_a_diverging_network_keeps_its_count_and_its_neighbours(simd_level):
    case = Case((3, 24, 10, 2), "mse", n_networks=3)
    p, *rest = case.arguments()
    healthy = train(case, 3, 0.4)
    p[1] *= 1e18
    sick = train(case, 3, 0.4, arguments=(p, *rest))
    assert not bool(torch.isfinite(sick[3][1]).any())
    assert all(kept == expected for kept, expected in counts(sick[2], case.widths, 0.4))
    for i in (0, 2):
        assert all(torch.equal(a[i], b[i]) for a, b in zip(healthy, sick, strict=True))


def test_an_unused_parameter_may_be_anything(simd_level):
    # not in force and not read: an infinity there must not reach a product
    case = Case((2, 8, 4), n=32)
    p, *rest = case.arguments()
    scores = initial_scores(case)
    mask = train(case, 0, 0.5)[2]
    before = train(case, 0, 0.5)
    p[~mask] = math.inf
    after = train(case, 0, 0.5, scores=scores, arguments=(p, *rest))
    assert torch.equal(before[4], after[4])
