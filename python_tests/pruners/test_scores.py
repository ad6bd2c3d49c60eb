"""Scores against plain per-network autograd in float64."""

import itertools

import pytest
import torch
from tolerances import TOLERANCES

from pns_fast import Masks, Population, init_population
from pns_fast.pruners import names, prune, score
from pns_fast.pruners.grasp import TEMPERATURE

WIDTHS = (2, 7, 5, 4)
N = 3


def population64(widths=WIDTHS, n=N, seed=0):
    return init_population(widths, n=n, seed=seed).to(dtype=torch.float64)


def make_batch(loss, n=N, widths=WIDTHS, samples=12):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, samples, widths[0], generator=g, dtype=torch.float64)
    if loss == "cross_entropy":
        return x, torch.randint(widths[-1], (n, samples), generator=g)
    return x, torch.randn(n, samples, widths[-1], generator=g, dtype=torch.float64)


def random_masks(population, density=0.6):
    g = torch.Generator().manual_seed(2)
    flat = population.flatten()
    return Masks.from_flat(torch.rand(flat.shape, generator=g) < density, population.widths)


def reference_loss(widths, theta, x, y, loss, temperature=1.0):
    """The mean loss of one network with flat parameters ``theta`` [P]."""
    at, h = 0, x
    for l, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
        w = theta[at : at + n_in * n_out].reshape(n_out, n_in)
        b = theta[at + n_in * n_out : at + n_in * n_out + n_out]
        at += n_out * (n_in + 1)
        h = h @ w.T + b
        h = h.relu() if l < len(widths) - 2 else h
    h = h / temperature
    return torch.nn.functional.cross_entropy(h, y) if loss == "cross_entropy" else ((h - y) ** 2).mean()


def assert_scores(actual, expected, kept):
    rtol, atol = TOLERANCES["scores_float64"]
    scale = expected[kept].abs().max()
    torch.testing.assert_close(actual[kept] / scale, expected[kept] / scale, rtol=rtol, atol=atol)
    assert (actual[~kept] == -torch.inf).all()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_snip_is_gradient_times_parameter(loss, masked):
    population = population64()
    masks = random_masks(population) if masked else None
    x, y = make_batch(loss)
    scores = score(population, "snip", (x, y), loss, masks=masks)
    for i in range(N):
        module = population.module(i)
        kept = masks.flatten()[i] if masked else torch.ones(scores.shape[1], dtype=torch.bool)
        parts = kept.split([p.numel() for p in module.parameters()])
        with torch.no_grad():
            for p, m in zip(module.parameters(), parts, strict=True):
                p *= m.reshape(p.shape)
        output = module(x[i])
        if loss == "cross_entropy":
            value = torch.nn.functional.cross_entropy(output, y[i])
        else:
            value = ((output - y[i]) ** 2).mean()
        value.backward()
        expected = torch.cat([(p.grad * p).abs().flatten() for p in module.parameters()]).detach()
        assert_scores(scores[i], expected, kept)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_grasp_is_parameter_times_hessian_gradient(loss, masked):
    population = population64()
    masks = random_masks(population) if masked else Masks.full(population)
    x, y = make_batch(loss)
    scores = score(population, "grasp", (x, y), loss, masks=masks)
    for i in range(N):
        kept = masks.flatten()[i]
        theta = population.flatten()[i] * kept

        def value(t, i=i, kept=kept):
            return reference_loss(WIDTHS, t * kept, x[i], y[i], loss, temperature=200.0)

        gradient = torch.autograd.functional.jacobian(value, theta)
        _, hessian_gradient = torch.autograd.functional.vhp(value, theta, gradient)
        assert_scores(scores[i], theta * hessian_gradient, kept)


def test_grasp_removes_first_what_lowers_the_gradient_norm():
    """Removing theta_i changes |g|^2 / 2 by about -theta_i (Hg)_i, and the largest theta * Hg are kept."""
    population = population64(n=1)
    x, y = make_batch("cross_entropy", n=1)
    scores = score(population, "grasp", (x, y))[0]
    theta, step = population.flatten()[0], 1e-6

    def half_norm(t):
        t = t.requires_grad_()
        value = reference_loss(WIDTHS, t, x[0], y[0], "cross_entropy", TEMPERATURE)
        return (torch.autograd.grad(value, t)[0] ** 2).sum() / 2

    for i in (int(scores.argmax()), int(scores.argmin())):
        shrunk = theta.clone()
        shrunk[i] *= 1 - step
        change = (half_norm(shrunk) - half_norm(theta.clone())) / step
        assert change.item() == pytest.approx(-scores[i].item(), rel=1e-3)
    masks = prune(population, "grasp", 0.5, (x, y)).flatten()[0]
    assert scores[masks].min() >= scores[~masks].max()


def naive_synflow(theta, widths):
    """|theta * dR/dtheta| of one network by the definition."""
    theta = theta.abs().requires_grad_()
    at, h = 0, theta.new_ones(widths[0])
    for n_in, n_out in itertools.pairwise(widths):
        w, b = theta[at : at + n_in * n_out], theta[at + n_in * n_out : at + n_out * (n_in + 1)]
        h = w.reshape(n_out, n_in) @ h + b
        at += n_out * (n_in + 1)
    return (theta * torch.autograd.grad(h.sum(), theta)[0]).detach()


@pytest.mark.parametrize("masked", [False, True])
def test_synflow_is_proportional_to_its_definition(masked):
    population = population64(widths=(3, 20, 30, 10, 4))
    masks = random_masks(population, 0.4) if masked else Masks.full(population)
    scores = score(population, "synflow", masks=masks)
    for i in range(N):
        kept = masks.flatten()[i]
        expected = naive_synflow(population.flatten()[i] * kept, population.widths)
        factor = scores[i][kept].max() / expected.max()
        assert factor.log2().item() == pytest.approx(round(factor.log2().item()), abs=1e-9)
        assert_scores(scores[i], expected * factor, kept)


def test_synflow_ranks_survive_where_float32_overflows():
    widths = (2, *[400] * 30, 4)
    population = init_population(widths, n=1, seed=3)
    theta = population.flatten()[0]
    assert not torch.isfinite(naive_synflow(theta, widths)).all()
    expected = naive_synflow(theta.double(), widths)
    masks = prune(population, "synflow", 0.01).flatten()[0]
    assert masks.sum() == -(-len(theta) // 100)
    rtol, _ = TOLERANCES["scores_float64"]
    assert expected[masks].min() >= expected[~masks].max() * (1 - rtol)


@pytest.mark.parametrize("power", [40, -40])
def test_synflow_ranks_survive_where_float64_overflows(power):
    """Scaling a layer's weights scales all scores alike, so 2^(40 * 30) must change no mask."""
    population = init_population((4, *[12] * 29, 4), n=2, seed=5).to(dtype=torch.float64)
    biases = [torch.zeros_like(b) for b in population.biases]
    plain = Population(population.weights, biases)
    scaled = Population([w * 2.0**power for w in population.weights], biases)
    expected = prune(plain, "synflow", 0.05)
    assert torch.equal(prune(scaled, "synflow", 0.05).flatten(), expected.flatten())


def test_synflow_of_a_collapsed_network_is_finite():
    population = population64()
    masks = random_masks(population)
    masks.weights[1][:] = False
    masks.biases[1][0] = False
    kept = masks.flatten()
    scores = score(population, "synflow", masks=masks)
    assert torch.isfinite(scores[kept]).all()
    assert masks.weights[0].sum() > 0
    assert (scores[:, : 7 * 3][kept[:, : 7 * 3]] == 0).all()


def test_magnitude_is_the_absolute_value():
    population = init_population(WIDTHS, n=N)
    assert torch.equal(score(population, "magnitude"), population.flatten().abs())


def test_random_depends_on_the_networks_key_only():
    population = init_population(WIDTHS, n=N)
    scores = score(population, "random", seed=7)
    assert torch.equal(scores[0], score(population.select(0), "random", seed=7)[0])
    assert torch.equal(scores[:1], score(population, "random", seed=[7, 8, 9])[:1])
    assert not torch.equal(scores[0], scores[1])
    large = score(init_population((10, 100, 100, 4), n=1), "random")
    assert large.mean().abs() < 0.05
    assert large.std().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("name", ["snip", "grasp"])
def test_float32_scores_follow_float64(name):
    population = init_population((2, 30, 30, 4), n=2)
    x, y = make_batch("cross_entropy", n=2, widths=(2, 30, 30, 4), samples=40)
    exact = score(population.to(dtype=torch.float64), name, (x, y))
    rtol, atol = TOLERANCES["scores_float32"]
    for i in range(2):
        scale = exact[i].abs().max()
        actual = score(population, name, (x, y))[i].double()
        torch.testing.assert_close(actual / scale, exact[i] / scale, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", names())
def test_inputs_are_not_changed_and_no_grad_does_not_matter(name):
    population, batch = init_population(WIDTHS, n=N), make_batch("cross_entropy")
    masks = random_masks(population)
    before = population.flatten(), masks.flatten()
    with torch.no_grad():
        scores = score(population, name, batch, masks=masks)
    assert not scores.requires_grad
    assert torch.equal(scores, score(population, name, batch, masks=masks))
    assert torch.equal(population.flatten(), before[0])
    assert torch.equal(masks.flatten(), before[1])
    assert not any(w.requires_grad for w in population.weights)


@pytest.mark.parametrize("name", [name for name in names() if name != "random"])
def test_a_score_that_is_not_finite_is_an_error_that_names_the_pruner(name):
    population = init_population(WIDTHS, n=N)
    population.weights[1][1, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=rf"{name}: .* networks \[1\]"):
        score(population, name, make_batch("cross_entropy"))
