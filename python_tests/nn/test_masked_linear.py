"""MaskedLinear: the maths of F.linear with a mask, and everything torch does with a layer."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from tolerances import TOLERANCES
from torch import nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from pns_fast.nn import MaskedLinear, finalize, mask_model


def random_layer(n_in=13, n_out=7, bias=True, dtype=torch.float64, density=0.4):
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    layer = MaskedLinear(n_in, n_out, bias, dtype=dtype)
    weight_mask = torch.rand(n_out, n_in, generator=generator) < density
    layer.set_mask(weight_mask, torch.rand(n_out, generator=generator) < density if bias else None)
    return layer


def dense(layer, x):
    bias = None if layer.bias is None else layer.bias * layer.bias_mask
    return F.linear(x, layer.weight * layer.weight_mask, bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(13,), (5, 13), (0, 13), (2, 3, 13)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward_and_gradients_are_those_of_a_masked_dense_layer(shape, bias, dtype):
    layer, twin = (random_layer(bias=bias, dtype=dtype) for _ in range(2))
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    rtol, atol = TOLERANCES["float64" if dtype == torch.float64 else "float32_forward"]
    output, expected = layer(x), dense(twin, other)
    torch.testing.assert_close(output, expected, rtol=rtol, atol=atol)
    output.sin().sum().backward()
    expected.sin().sum().backward()
    for ours, theirs in [(x, other), *zip(layer.parameters(), twin.parameters(), strict=True)]:
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=rtol, atol=atol)
    assert (layer.weight.grad[~layer.weight_mask] == 0).all()


def test_what_is_pruned_does_not_spread_even_if_it_is_not_finite():
    layer = random_layer()
    with torch.no_grad():
        layer.weight[~layer.weight_mask] = torch.nan
        layer.bias[~layer.bias_mask] = torch.inf
    x = torch.randn(3, 13, dtype=torch.float64)
    torch.testing.assert_close(layer(x), layer.finalize()(x))


def test_second_derivatives():
    layer = random_layer(4, 3)
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, w: functional_call(layer, {"weight": w}, x), (x, layer.weight))


def test_masks_start_full_and_are_set_in_place():
    layer = MaskedLinear(3, 2)
    assert layer.density == 1.0
    buffer = layer.weight_mask
    layer.set_mask(torch.zeros(2, 3, dtype=torch.bool))
    assert layer.weight_mask is buffer
    assert layer.density == 0.25
    assert torch.equal(layer(torch.ones(1, 3))[0], layer.bias)
    assert repr(layer) == "MaskedLinear(in_features=3, out_features=2, bias=True, density=0.25)"
    assert MaskedLinear(3, 2, bias=False).masks().keys() == {"weight"}


def test_a_layer_without_parameters_can_be_shown():
    layer = MaskedLinear(0, 5, bias=False)
    assert layer.density == 1.0
    assert "in_features=0" in repr(layer)


def test_from_linear_copies_and_finalize_goes_back():
    linear = nn.Linear(3, 2)
    before = linear.weight.detach().clone()
    mask = torch.tensor([[True, False, True], [False, False, True]])
    layer = MaskedLinear.from_linear(linear, mask)
    assert type(linear) is nn.Linear
    assert layer.weight is not linear.weight
    x = torch.randn(4, 3)
    plain = layer.finalize()
    assert type(plain) is nn.Linear
    assert list(plain.state_dict()) == ["weight", "bias"]
    assert torch.equal(plain.weight, before * mask)
    assert torch.equal(layer.weight, before)
    torch.testing.assert_close(plain(x), layer(x), rtol=1e-6, atol=1e-6)


def test_state_dict_round_trips():
    layer, other = random_layer(), MaskedLinear(13, 7, dtype=torch.float64)
    assert list(layer.state_dict()) == ["weight", "bias", "weight_mask", "bias_mask"]
    other.load_state_dict(layer.state_dict())
    x = torch.randn(3, 13, dtype=torch.float64)
    assert torch.equal(other(x), layer(x))
    mask = layer.weight_mask.clone()
    plain = nn.Linear(13, 7, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="weight_mask"):
        layer.load_state_dict(plain.state_dict())
    layer.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(layer.weight, plain.weight)
    assert torch.equal(layer.weight_mask, mask)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_after_a_backward_pass(copied):
    layer, x = random_layer(), torch.randn(3, 13, dtype=torch.float64)
    layer(x).sum().backward()
    other = copied(layer)
    assert torch.equal(other(x), layer(x))
    other.weight_mask.zero_()
    assert layer.weight_mask.any()


def test_torch_save_with_weights_only(tmp_path):
    layer = random_layer()
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    state = torch.load(tmp_path / "layer.pt", weights_only=True)
    assert torch.equal(state["weight_mask"], layer.weight_mask)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_casts_leave_the_masks_bool(dtype):
    layer = random_layer().to(dtype)
    assert layer.weight.dtype == dtype
    assert layer.weight_mask.dtype == layer.bias_mask.dtype == torch.bool
    x = torch.randn(5, 13, dtype=dtype)
    rtol, atol = TOLERANCES["float32_forward"]
    torch.testing.assert_close(layer(x), dense(layer, x), rtol=rtol, atol=atol)
    layer(x).sum().backward()
    assert (layer.weight.grad[~layer.weight_mask] == 0).all()


def test_autocast_computes_in_its_dtype():
    layer = random_layer(dtype=torch.float32)
    model = nn.Sequential(nn.Linear(13, 13), layer)
    x = torch.randn(5, 13)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x)
    assert output.dtype == torch.bfloat16
    output.sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_the_meta_device():
    layer = MaskedLinear(13, 7, device="meta")
    assert layer(torch.empty(5, 13, device="meta")).shape == (5, 7)
    assert repr(layer) == "MaskedLinear(in_features=13, out_features=7, bias=True)"
    assert layer.to_empty(device="cpu").weight_mask.shape == (7, 13)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_without_a_graph_break(backend):
    layer, twin = random_layer(dtype=torch.float32), random_layer(dtype=torch.float32)
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    x = torch.randn(5, 13)
    output, expected = compiled(x), twin(x)
    torch.testing.assert_close(output, expected)
    output.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(layer.weight.grad, twin.weight.grad)
    layer.set_mask(torch.zeros_like(layer.weight_mask))  # buffers are read at every call
    assert torch.equal(compiled(x), layer(x))


def test_export():
    layer, x = random_layer(dtype=torch.float32), torch.randn(5, 13)
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x), layer(x))


def test_functional_call_and_vmap():
    layer = random_layer()
    weights = torch.randn(3, *layer.weight.shape, dtype=torch.float64, requires_grad=True)
    x = torch.randn(5, 13, dtype=torch.float64)
    output = vmap(lambda w: functional_call(layer, {"weight": w}, x))(weights)
    expected = torch.stack([dense_with(layer, w, x) for w in weights])
    torch.testing.assert_close(output, expected)
    ours, theirs = (torch.autograd.grad(t.sin().sum(), weights)[0] for t in (output, expected))
    torch.testing.assert_close(ours, theirs)
    per_sample = vmap(torch.func.grad(lambda w, row: functional_call(layer, {"weight": w}, row).sum()), (None, 0))
    assert per_sample(layer.weight.detach(), x).shape == (5, *layer.weight.shape)
    with torch.no_grad():
        torch.testing.assert_close(vmap(lambda w: functional_call(layer, {"weight": w}, x))(weights), expected)


def dense_with(layer, weight, x):
    return F.linear(x, weight * layer.weight_mask, layer.bias * layer.bias_mask)


MASK = torch.ones(7, 13, dtype=torch.bool)
BAD = [
    (lambda: random_layer().set_mask(MASK[:2]), ValueError, r"weight_mask: expected shape \[7, 13\], got \[2, 13\]"),
    (lambda: random_layer().set_mask(MASK.float()), TypeError, "weight_mask: expected a bool tensor"),
    (lambda: random_layer().set_mask(MASK.tolist()), TypeError, "weight_mask: expected a bool tensor, got list"),
    (lambda: random_layer().set_mask(bias_mask=MASK), ValueError, "bias_mask"),
    (lambda: random_layer(bias=False).set_mask(bias_mask=MASK[0]), ValueError, "bias_mask: expected None"),
    (lambda: MaskedLinear.from_linear(nn.Conv2d(1, 1, 1)), TypeError, "layer: expected a plain nn.Linear, got Conv2d"),
    (lambda: MaskedLinear.from_linear(random_layer()), TypeError, "layer"),
    (lambda: MaskedLinear.from_linear(nn.Linear(2, 2), MASK), ValueError, "weight_mask"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_wrong_calls(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_wrong_mask_changes_nothing():
    layer = random_layer()
    before = layer.weight_mask.clone()
    with pytest.raises(ValueError, match="bias_mask"):
        layer.set_mask(MASK, MASK)
    assert torch.equal(layer.weight_mask, before)


def _worker(rank, path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}/init", rank=rank, world_size=2)
    torch.manual_seed(rank)
    model = mask_model(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)))
    model[0].set_mask(torch.rand(5, 6) < 0.5)  # another on each rank
    parallel = nn.parallel.DistributedDataParallel(model, broadcast_buffers=True)
    parallel(torch.randn(4, 6)).sum().backward()
    torch.save((model.state_dict(), model[0].weight.grad, finalize(parallel).state_dict()), f"{path}/{rank}.pt")
    torch.distributed.barrier()  # who is done first must not hang up on the other
    torch.distributed.destroy_process_group()


def test_distributed_data_parallel_broadcasts_the_masks(tmp_path):
    torch.multiprocessing.spawn(_worker, (str(tmp_path),), nprocs=2)
    (state, gradient, final), (other, other_gradient, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(state[name], other[name]) for name in state)
    assert torch.equal(gradient, other_gradient)
    assert 0 < state["0.weight_mask"].sum() < 30
    assert (gradient[~state["0.weight_mask"]] == 0).all()
    assert list(final) == ["0.weight", "0.bias", "2.weight", "2.bias"]
