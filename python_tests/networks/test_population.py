"""Population: shapes, the forward pass against plain nn.Linear, the flat layout, selection."""

import pytest
import torch
from tolerances import TOLERANCES

import pns_fast as pns
from pns_fast.networks import cat_populations

RTOL, ATOL = TOLERANCES["float32_forward"]


@pytest.fixture
def population():
    return pns.init_population((3, 17, 9, 4), n=3, seed=5)


@pytest.fixture
def masks(population):
    generator = torch.Generator().manual_seed(0)
    flat = torch.rand(population.flatten().shape, generator=generator) < 0.4
    return pns.Masks.from_flat(flat, population.widths)


def test_attributes(population):
    assert (population.n, len(population)) == (3, 3)
    assert population.widths == (3, 17, 9, 4)
    assert (population.dtype, population.device) == (torch.float32, torch.device("cpu"))
    assert [tuple(w.shape) for w in population.weights] == [(3, 17, 3), (3, 9, 17), (3, 4, 9)]
    assert [tuple(b.shape) for b in population.biases] == [(3, 17), (3, 9), (3, 4)]


def test_forward_is_that_of_the_modules(population):
    x = torch.randn(11, 3)
    expected = torch.stack([population.module(i)(x) for i in range(3)])
    torch.testing.assert_close(population.forward(x), expected, rtol=RTOL, atol=ATOL)


def test_forward_with_inputs_of_their_own(population):
    x = torch.randn(3, 11, 3)
    expected = torch.stack([population.module(i)(x[i]) for i in range(3)])
    torch.testing.assert_close(population.forward(x), expected, rtol=RTOL, atol=ATOL)


def test_masks_remove_weights_and_biases(population, masks):
    x = torch.randn(11, 3)
    removed = pns.Population(
        [w * m for w, m in zip(population.weights, masks.weights, strict=True)],
        [b * m for b, m in zip(population.biases, masks.biases, strict=True)],
    )
    torch.testing.assert_close(population.forward(x, masks), removed.forward(x), rtol=RTOL, atol=ATOL)


def test_forward_is_the_same_alone_in_a_batch_and_on_two_threads(population, masks):
    x = torch.randn(64, 3)
    together = population.forward(x, masks)
    for i in range(3):
        assert torch.equal(population.select(i).forward(x, masks.select(i))[0], together[i])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        assert torch.equal(population.forward(x, masks), together)
    finally:
        torch.set_num_threads(threads)


def test_gradients_reach_kept_parameters_only(population, masks):
    flat = population.flatten().requires_grad_()
    x = torch.randn(7, 3)
    pns.Population.from_flat(flat, population.widths).forward(x, masks).square().sum().backward()
    assert not flat.grad[~masks.flatten()].any()
    module = population.select(1).module(0)
    linears = [layer for layer in module if isinstance(layer, torch.nn.Linear)]
    with torch.no_grad():
        for l, linear in enumerate(linears):
            linear.weight *= masks.weights[l][1]
            linear.bias *= masks.biases[l][1]
    module(x).square().sum().backward()
    expected = torch.cat([p.grad.flatten() for p in module.parameters()]) * masks.flatten()[1]
    torch.testing.assert_close(flat.grad[1], expected, rtol=RTOL, atol=ATOL * expected.abs().max().item())


def test_flat_layout(population):
    flat = population.flatten()
    assert flat.shape == (3, 17 * 3 + 17 + 9 * 17 + 9 + 4 * 9 + 4)
    assert torch.equal(flat[1, : 17 * 3], population.weights[0][1].flatten())
    assert torch.equal(flat[1, 17 * 3 : 17 * 4], population.biases[0][1])
    back = pns.Population.from_flat(flat, population.widths)
    for a, b in zip((*back.weights, *back.biases), (*population.weights, *population.biases), strict=True):
        assert torch.equal(a, b)


def test_from_flat_and_select_copy(population):
    flat = population.select(0).flatten()
    one = pns.Population.from_flat(flat, population.widths)
    flat.zero_()
    assert torch.equal(one.weights[0][0], population.weights[0][0])
    one.select(0).weights[0].zero_()
    assert torch.equal(one.weights[0][0], population.weights[0][0])


def test_select_and_cat(population):
    back = cat_populations([population.select([2]), population.select(torch.tensor([0, 1]))]).select([1, 2, 0])
    assert torch.equal(back.flatten(), population.flatten())


def test_module_is_plain_and_leaves_the_global_generator_alone(population):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    module = population.module(2)
    assert torch.equal(torch.get_rng_state(), state)
    linear, relu = torch.nn.Linear, torch.nn.ReLU
    assert [type(layer) for layer in module] == [linear, relu, linear, relu, linear]
    with torch.no_grad():
        module[0].weight.zero_()
    assert population.weights[0][2].any()


def test_to_dtype(population):
    double = population.to(dtype=torch.float64)
    assert double.dtype == torch.float64
    assert torch.equal(double.flatten().float(), population.flatten())


def test_to_takes_a_dtype_first_as_torch_does():
    population = pns.init_population((2, 3, 1))
    assert population.to(torch.float64).dtype == population.to("cpu", torch.float64).dtype == torch.float64
    with pytest.raises(TypeError, match=r"dtype: .* got 'float64'"):
        population.to(dtype="float64")
    with pytest.raises(ValueError, match="device: expected a "):
        population.to(torch.float64, torch.float64)


W, B = torch.zeros(2, 3, 1), torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("weights", "biases", "error", "message"),
    [
        ([], [], ValueError, "weights, biases"),
        ([W], [], ValueError, "weights, biases"),
        ([W.numpy()], [B], TypeError, r"weights\[0\]"),
        ([W[0]], [B], ValueError, r"weights\[0\]"),
        ([W], [B[:, :2]], ValueError, r"biases\[0\]"),
        ([W, torch.zeros(2, 4, 5)], [B, torch.zeros(2, 4)], ValueError, r"weights\[1\]"),
        ([W, torch.zeros(1, 4, 3)], [B, torch.zeros(1, 4)], ValueError, r"weights\[1\]"),
        ([W.long()], [B.long()], TypeError, "float32 or float64"),
        ([W], [B.double()], ValueError, r"biases\[0\].*float64"),
        ([W[:0]], [B[:0]], ValueError, "at least one network"),
    ],
)
def test_wrong_parameters(weights, biases, error, message):
    with pytest.raises(error, match=message):
        pns.Population(weights, biases)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: p.forward([[0.0, 0.0, 0.0]]), TypeError, "x: expected a tensor"),
        (lambda p: p.forward(torch.zeros(5, 2)), ValueError, "x: expected shape"),
        (lambda p: p.forward(torch.zeros(2, 5, 3)), ValueError, "x: expected shape"),
        (lambda p: p.forward(torch.zeros(5, 3).double()), TypeError, "x: expected torch.float32"),
        (lambda p: p.forward(torch.zeros(5, 3), p), TypeError, "masks: expected Masks"),
        (
            lambda p: p.forward(torch.zeros(5, 3), pns.Masks.full(p.select(0))),
            ValueError,
            "masks: expected 3",
        ),
        (lambda p: p.module(3), ValueError, "i: expected"),
        (lambda p: p.module(0.0), TypeError, "i: expected"),
        (lambda p: p.select([]), ValueError, "indices"),
        (lambda p: p.select([3]), ValueError, "indices"),
        (lambda p: p.select([0.5]), TypeError, "indices"),
        (lambda p: pns.Population.from_flat(p.flatten()[:, 1:], p.widths), ValueError, "flat"),
        (lambda p: pns.Population.from_flat(p.flatten(), (3, 0)), ValueError, "widths"),
        (lambda p: pns.Population.from_flat(p.flatten(), (3, 2.5)), TypeError, "widths"),
        (lambda p: pns.Population.from_flat(p.flatten(), 3), TypeError, "widths"),
        (lambda p: pns.Population.from_flat(p.flatten().tolist(), p.widths), TypeError, "flat"),
        (lambda p: cat_populations([]), ValueError, "populations"),
        (lambda p: cat_populations([p, pns.init_population((3, 4))]), ValueError, "populations"),
        (lambda p: cat_populations([p, pns.Masks.full(p)]), TypeError, "populations"),
    ],
)
def test_wrong_calls(population, call, error, message):
    with pytest.raises(error, match=message):
        call(population)
