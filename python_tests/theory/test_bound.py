"""Theorem 2: the formula in 60 digits, at widths beyond floats, the least width, exact match probabilities."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch

import pns_fast as pns
from pns_fast.theory import existence_probability, layer_errors, layer_terms, layer_widths, required_width
from pns_fast.theory.bound import _log_rate

RELU = pns.tasks.get("relu").ticket(4)
# neurons of 3, 2 and 1 parameters, an output of 4; all within the theorem's assumption
MIXED = [([[0.5, -0.25], [0.3, 0.0], [0.0, 0.6]], [0.1, -0.2, 0.0]), ([[0.4, -0.5, 0.3]], [0.2])]


def by_the_formula(errors, parameters, widths, normal=False):
    """Theorem 2 as it stands, in 60 digits."""
    with localcontext() as context:
        context.prec, context.Emin = 60, -(10**9)
        product = Decimal(1)
        for eps, ks, width in zip(errors, parameters, widths, strict=True):
            p = [(Decimal(eps) / (2 if normal else 1)) ** k for k in ks]
            missed = [(width * (1 - q).ln()).exp() if q > Decimal("1e-50") else (-width * q).exp() for q in p]
            product *= max(Decimal(0), 1 - sum(missed))
        return float(product)


@pytest.mark.parametrize("init", ["uniform", "normal"])
@pytest.mark.parametrize(
    ("ticket", "eps", "widths"),
    [
        (RELU, 0.1, (1, 100, 100, 100)),
        (RELU, 0.1, (1, 300, 1, 20)),
        (RELU, 1e-12, (1, 1, 1, 1)),  # 1 - (1 - p)^n in floats would lose it
        (RELU, 1e-12, (1, 10**13, 10**14, 10**15)),
        (RELU, 1e-50, (1, 10**52, 10**51, 10**53)),
        (MIXED, 0.9, (2, 3000, 30_000)),
        (MIXED, 0.5, (2, 100_000, 10**6)),
        (MIXED, 1e-3, (2, 10**14, 10**19)),
        (MIXED, 1e-20, (2, 10**65, 10**87)),
    ],
)
def test_the_formula(ticket, eps, widths, init):
    terms = layer_terms(ticket, eps)
    expected = by_the_formula(layer_errors(ticket, eps), [t.n_parameters for t in terms], widths[1:], init == "normal")
    assert existence_probability(ticket, widths, eps, init) == pytest.approx(expected, rel=1e-11, abs=1e-300)
    if init == "normal":
        assert existence_probability(ticket, widths, eps, "he_scaled") == pytest.approx(expected, rel=1e-11, abs=1e-300)


def test_by_hand():
    # one neuron a layer, eps_2 = 0.9 / 4 and eps_1 = eps_2 / (1 + 0.45)
    p = (1 - (1 - 0.225 / 1.45) ** 10) * (1 - (1 - 0.225) ** 20)
    assert existence_probability(pns.tasks.get("relu").ticket(3), (1, 10, 20), 0.9) == pytest.approx(p, rel=1e-13)
    trained = existence_probability(pns.tasks.get("relu").ticket(3), (1, 10, 1), 0.9, output="trained")
    assert trained == pytest.approx(1 - (1 - 0.225 / 1.45) ** 10, rel=1e-13)
    assert existence_probability(MIXED, (2, 10, 10), 0.1) == 0.0  # the union bound says nothing
    # an error allowed to be larger than 1 matches always
    assert existence_probability([([[0.5]], [0.0])], (1, 1), 50.0) == 1.0


def test_nothing_overflows():
    # 40 parameters: match probability about 10^-200 and beyond floats
    wide = [(np.full((1, 40), 0.5), [0.0])]
    for eps, log10_needed in ((1e-3, 210), (1e-30, 1290)):
        eps_1 = layer_errors(wide, eps)[0]
        needed = required_width(wide, 0.9, eps)
        expected = math.log10(math.log(10)) - 40 * math.log10(eps_1)
        assert math.log10(needed) == pytest.approx(expected, rel=1e-12)
        assert expected > log10_needed
        assert existence_probability(wide, (40, needed), eps) == pytest.approx(0.9, abs=1e-9)
        assert existence_probability(wide, (40, 10 * needed), eps) == pytest.approx(1 - 1e-10, abs=1e-12)
        assert existence_probability(wide, (40, 10**3000), eps) == 1.0
        assert existence_probability(wide, (40, needed // 10**20), eps) == pytest.approx(1e-20 * math.log(10), rel=1e-9)
    assert existence_probability(wide, (40, 10**300), 1e-30) == 0.0
    assert existence_probability(RELU, (1, 10**300, 10**300, 10**300), 0.1) == 1.0


@pytest.mark.parametrize("log_p", [-1e-15, -1e-3, -0.69, -0.71, -5.0, -39.9, -40.1, -700.0])
def test_the_rate_of_missing(log_p):
    with localcontext() as context:
        context.prec = 400
        expected = float((-(1 - Decimal(log_p).exp()).ln()).ln())
    assert _log_rate(log_p) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("output", ["matched", "trained"])
@pytest.mark.parametrize("match", ["printed", "exact"])
@pytest.mark.parametrize("init", ["uniform", "normal"])
@pytest.mark.parametrize("probability", [1e-6, 0.5, 0.9, 1 - 1e-9])
def test_the_required_width_is_the_least(probability, init, match, output):
    options = {"output": output, "match": match}
    for ticket, eps in ((RELU, 0.1), (RELU, 1e-6), (MIXED, 0.5)):
        n = required_width(ticket, probability, eps, init, **options)
        widths = pns.theory.layer_terms(ticket, eps)
        n_inputs, n_layers = widths[0].theta.shape[1] - 1, len(widths)
        narrowest = max(len(t.n_parameters) for t in widths[: n_layers - (output == "trained")])
        last = [n] if output == "matched" else [1]
        assert isinstance(n, int)
        assert (
            existence_probability(ticket, (n_inputs, *[n] * (n_layers - 1), *last), eps, init, **options) >= probability
        )
        if n > narrowest:
            less = (n_inputs, *[n - 1] * n_layers)
            assert existence_probability(ticket, less, eps, init, **options) < probability


def test_layer_widths_reach_the_probability_together():
    for ticket, eps in ((RELU, 0.1), (MIXED, 0.3), (pns.tasks.get("circle").ticket(6), 0.1)):
        widths, n = layer_widths(ticket, 0.9, eps), required_width(ticket, 0.9, eps)
        n_inputs = layer_terms(ticket, eps)[0].theta.shape[1] - 1
        assert 0.9 <= existence_probability(ticket, (n_inputs, *widths), eps) < 0.91
        assert min(widths) <= n <= max(widths)
        assert layer_widths(ticket, 0.9, eps, output="trained")[-1] <= widths[-2]


def test_the_last_number_below_1():
    """Of three factors each would have to be 1."""
    last = math.nextafter(1, 0)
    widths = layer_widths(RELU, last, 0.3)
    assert existence_probability(RELU, (1, *widths), 0.3) == pytest.approx(1, abs=1e-14)
    assert required_width(RELU, last, 0.3) < 1000


def test_a_ticket_needs_room():
    eight = [(np.full((8, 1), 0.5), np.zeros(8))]
    assert required_width(eight, 0.5, 1e3) == 8  # everything matches, but eight neurons are eight


def test_exact_probabilities_of_uniform_parameters():
    # as printed within the assumption, half at 1, nothing beyond 1 + eps_l
    assert existence_probability(MIXED, (2, 300, 3000), 0.9, match="exact") == pytest.approx(
        existence_probability(MIXED, (2, 300, 3000), 0.9), rel=1e-12
    )
    half = math.prod(1 - (1 - e / 2) ** 100 for e in layer_errors(RELU, 0.1))
    assert existence_probability(RELU, (1, 100, 100, 100), 0.1, match="exact") == pytest.approx(half, rel=1e-12)
    large = [([[0.5]], [0.0]), ([[1.5]], [0.0])]
    assert existence_probability(large, (1, 100, 100), 0.1) > 0.5
    assert existence_probability(large, (1, 100, 100), 0.1, match="exact") == 0.0
    assert required_width(large, 0.9, 0.1, match="exact") == math.inf
    assert required_width(large, 0.9, 0.1, match="exact", output="trained") < 1000
    assert required_width(pns.tasks.get("circle").ticket(5), 0.9, 0.1, match="exact") == math.inf


@pytest.mark.parametrize("eps", [1e-7, 1.9e-4, 2.1e-4, 0.2, 3.0])  # eps_1 is half of it
@pytest.mark.parametrize("theta", [0.1, 1.0, 2.5])
def test_exact_probabilities_of_normal_parameters(theta, eps):
    ticket = [([[theta]], [0.0])]
    e = layer_errors(ticket, eps)[0]
    # Simpson's rule in 1,000 intervals: 12 digits for the widest of these
    x = np.linspace(-1, 1, 1001) * e + theta
    weights = np.where(np.arange(1001) % 2, 4.0, 2.0)
    weights[[0, -1]] = 1
    expected = float((np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) * weights).sum() / 3 * 2 * e / 1000)
    assert existence_probability(ticket, (1, 1), eps, "normal", match="exact") == pytest.approx(expected, rel=1e-10)


def test_exact_probabilities_agree_with_match_bound():
    # pns.existence.match_bound is for a distance sqrt(k) eps_l, and 0 outside of the assumption
    for layer in layer_terms(MIXED, 0.5):
        for theta, k in zip(layer.theta, layer.n_parameters, strict=True):
            bound = pns.existence.match_bound(theta[theta != 0], layer.error * math.sqrt(k))
            assert float(bound) == pytest.approx(layer.error**k, rel=1e-12)
    ticket = [([[0.5, -0.25]], [0.3])]
    error = layer_errors(ticket, 0.5)[0]
    bound = pns.existence.match_bound(torch.tensor([0.5, -0.25, 0.3]), error * math.sqrt(3))
    assert existence_probability(ticket, (2, 1), 0.5, match="exact") == pytest.approx(float(bound), rel=1e-12)


CIRCLE = pns.tasks.get("circle").ticket(5)
WRONG_CALLS = {
    "depth": (ValueError, "widths: expected 4 layers", lambda: existence_probability(RELU, (1, 9, 1), 0.1)),
    "inputs": (ValueError, "widths: .* 1 inputs", lambda: existence_probability(RELU, (2, 9, 9, 1), 0.1)),
    "narrow": (ValueError, "narrower", lambda: existence_probability(CIRCLE, (2, 9, 9, 19, 4), 0.1)),
    "floats": (TypeError, "widths: expected ints", lambda: existence_probability(RELU, (1, 9.0, 9, 1), 0.1)),
    "init": (ValueError, "init: expected one of", lambda: existence_probability(RELU, (1, 9, 9, 1), 0.1, "he")),
    "output": (ValueError, "output: .* 'free'", lambda: required_width(RELU, 0.9, 0.1, output="free")),
    "match": (ValueError, "match: .* 'best'", lambda: required_width(RELU, 0.9, 0.1, match="best")),
    "norm": (ValueError, "norm: .* 'l1'", lambda: layer_widths(RELU, 0.9, 0.1, norm="l1")),
    "one": (ValueError, "probability: .*, got 1", lambda: required_width(RELU, 1, 0.1)),
    "zero": (ValueError, "probability: .*, got 0", lambda: required_width(RELU, 0, 0.1)),
    "text": (TypeError, "probability: expected a number", lambda: required_width(RELU, "0.9", 0.1)),
    "one layer": (
        ValueError,
        "output: expected matched",
        lambda: required_width([([[0.5]], [0.0])], 0.9, 0.1, output="trained"),
    ),
}


@pytest.mark.parametrize("call", WRONG_CALLS)
def test_wrong_calls(call):
    error, message, wrong = WRONG_CALLS[call]
    with pytest.raises(error, match=message):
        wrong()
