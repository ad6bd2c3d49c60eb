"""masked_linear's sparse CUDA path, which hands addresses to kernels: hooks on saved tensors may bring others than were
checked, tensors may lie elsewhere, threads may launch at once. What decides is run on the CPU too, with stand-ins."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from ops.layers import F32, F64, assert_close, layer
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.nn import functional as F

from pns_fast import ops
from pns_fast.ops import _masked_cuda, _masked_product
from pns_fast.ops.masked_linear import _SparseOnCuda, kept_bias

AS_CHECKED = {"the same": lambda t: t, "copies": torch.clone}
OTHERS = {  # what comes back, and the error that says so
    "halves": (lambda t: t.half() if t.is_floating_point() else t, TypeError),
    "doubles": (lambda t: t.double() if t.is_floating_point() else t, TypeError),
    "a row less": (lambda t: t[1:], ValueError),
    "elsewhere": (torch.Tensor.cpu, ValueError),
}


def through(unpack):
    return saved_tensors_hooks(lambda t: t, unpack)


def dense(x, weight, mask, bias):
    return F.linear(x, torch.where(mask, weight, 0), bias)


def leaves(*arguments):
    return [t.requires_grad_() if t.is_floating_point() else t for t in arguments]


@pytest.fixture
def launched(monkeypatch):
    """The sparse path on the CPU, where a mask stands for its index: a list of the backwards that were launched."""
    launches = []

    def gradients(mask, grad, x, weight, wants_x, wants_weight):
        launches.append(1)
        return grad @ torch.where(mask, weight, 0), torch.where(mask, grad.mT @ x, 0)

    monkeypatch.setattr(_masked_cuda, "may_launch", lambda *tensors: True)
    monkeypatch.setattr(_masked_cuda, "sparse_product", lambda mask, x, weight, bias: dense(x, weight, mask, bias))
    monkeypatch.setattr(_masked_cuda, "sparse_gradients", gradients)
    return launches


@pytest.mark.parametrize("name", AS_CHECKED)
def test_hooks_that_bring_what_was_checked(launched, name):
    x, weight, mask, bias = arguments = leaves(*layer(6, 5, 4, None, F32))
    with through(AS_CHECKED[name]):
        y = _SparseOnCuda.apply(x, weight, mask, bias, mask)
    got = torch.autograd.grad(y.square().sum(), (x, weight, bias))
    for a, b in zip(got, torch.autograd.grad(dense(*arguments).square().sum(), (x, weight, bias)), strict=True):
        assert_close(a, b, "float32_gradient")
    assert launched == [1]


@pytest.mark.parametrize("name", [name for name in OTHERS if name != "elsewhere"])
def test_hooks_that_bring_others(launched, name):
    unpack, error = OTHERS[name]
    x, weight, mask, bias = leaves(*layer(6, 5, 4, None, F32))
    with through(unpack):
        y = _SparseOnCuda.apply(x, weight, mask, bias, mask)
    with pytest.raises(error):
        y.sum().backward()
    assert not launched


def raw_calls(x, weight, mask, upstream):
    """The registered products as CUDA has them, each with one tensor elsewhere."""
    other = "meta" if x.device.type == "cpu" else "cpu"
    product, outer, backward = (getattr(_masked_product, f"_masked_{n}_cuda") for n in ("product", "outer", "backward"))
    return {
        "weight": lambda: product(x, weight.to(other), mask, None, False),
        "mask": lambda: product(x, weight, mask.to(other), None, False),
        "bias": lambda: product(x, weight, mask, weight[:, 0].to(other), False),
        "grad": lambda: outer(upstream.to(other), x, mask),
        "x": lambda: backward(upstream, x.to(other), weight, mask, [True, True, True]),
    }


def assert_refused(calls):
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"{'grad' if name == 'x' else name}: expected device"):
            call()


def test_tensors_elsewhere():
    x, weight, mask, _ = layer(6, 5, 4, None, F32)
    assert_refused(raw_calls(x, weight, mask, x.new_ones(6, 4)))


def test_a_mask_that_collectives_may_write_to_has_no_index(monkeypatch):
    """A broadcast leaves a mask's version as it was; see _masked_cuda.is_shared."""
    x, _, mask, _ = layer(40, 5, 4, None, F32)
    index = _masked_cuda._new_index(mask)
    index.tensors = (mask,)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 0, raising=False)
    for name, value in {"FEWEST_WEIGHTS": 0, "has_room": lambda device: True, "mask_index": lambda mask: index}.items():
        monkeypatch.setattr(_masked_cuda, name, value)
    monkeypatch.setattr(_masked_cuda, "most_kept", lambda *sizes: 1 << 40)
    assert _masked_cuda.layer_index(x, mask) is index
    for name, value in {"is_available": True, "is_initialized": True, "get_world_size": 2}.items():
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value, raising=False)
    assert _masked_cuda.layer_index(x, mask) is None


def test_indices_of_masks_that_are_gone_are_forgotten():
    _masked_cuda.clear_mask_indices()
    masks = [torch.zeros(4, 5, dtype=torch.bool) for _ in range(3)]
    for mask in masks:
        _masked_cuda.keep_dense(mask)
    view, mask = masks[0][1:], None
    del masks[:2]
    _masked_cuda._forget_expired()
    assert len(_masked_cuda._indices) == 2  # one is there, of one a view
    del view, masks[:]
    _masked_cuda._forget_expired()
    assert not _masked_cuda._indices


# ---- on a GPU


@pytest.fixture
def sparse(monkeypatch):
    """Every layer takes the sparse path."""
    for name, value in {"FEWEST_WEIGHTS": 0, "INDEXED_BELOW": 2.0, "most_kept": lambda *sizes: 1 << 40}.items():
        monkeypatch.setattr(_masked_cuda, name, value)
    _masked_cuda.clear_mask_indices()
    yield
    _masked_cuda.clear_mask_indices()


def arguments_on(device, *sizes):
    return leaves(*(t.to(device) for t in layer(*sizes, None, F32, 0.1)))


@pytest.mark.gpu
@pytest.mark.parametrize("hooks", [*(through(f) for f in AS_CHECKED.values()), save_on_cpu()], ids=[*AS_CHECKED, "cpu"])
def test_hooks_on_a_gpu(cuda, sparse, hooks):
    x, weight, _, bias = arguments = arguments_on(cuda, 40, 67, 9)
    with hooks:
        y = ops.masked_linear(*arguments)
    assert type(y.grad_fn).__name__ == "_SparseOnCudaBackward"
    expected = torch.autograd.grad(ops.masked_linear(*arguments).square().sum(), (x, weight, bias))
    got = torch.autograd.grad(y.square().sum(), (x, weight, bias))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("name", OTHERS)
def test_hooks_that_bring_others_on_a_gpu(cuda, sparse, name):
    unpack, error = OTHERS[name]
    arguments = arguments_on(cuda, 40, 67, 9)
    with through(unpack):
        y = ops.masked_linear(*arguments)
    with pytest.raises(error):
        y.sum().backward()
    ops.masked_linear(*arguments).sum().backward()  # the device is fine


@pytest.mark.gpu
def test_tensors_elsewhere_on_a_gpu(cuda, sparse):
    x, weight, mask, _ = arguments_on(cuda, 6, 5, 4)
    assert_refused(raw_calls(x.detach(), weight.detach(), mask, x.new_ones(6, 4)))


@pytest.mark.gpu
def test_threads_whose_launches_need_different_shared_memory(cuda, sparse):
    cases = [[t.detach() for t in arguments_on(cuda, 64, n_in, 70)] for n_in in (100, 400, 900, 1500)]
    expected = [ops.masked_linear(*case) for case in cases]

    def run(i):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.default_stream())
        with torch.cuda.stream(stream):
            return all([torch.equal(ops.masked_linear(*cases[i]), expected[i]) for _ in range(200)])

    torch.cuda.synchronize()
    with ThreadPoolExecutor(len(cases)) as pool:
        assert all(pool.map(run, range(len(cases))))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [F32, F64, torch.float16, torch.bfloat16], ids=str)
def test_a_pruned_bias_is_not_read(cuda, dtype):
    """One launch, and one for its gradient, which is differentiable again."""
    kept = torch.tensor([True, False, True, False], device=cuda)
    bias = torch.tensor([1.0, torch.nan, 3.0, torch.inf], device=cuda, dtype=dtype, requires_grad=True)
    y = kept_bias(bias, kept)
    assert y.tolist() == [1, 0, 3, 0]
    assert y.dtype == dtype
    (grad,) = torch.autograd.grad(y.square().sum(), bias, create_graph=True)
    assert grad.tolist() == [2, 0, 6, 0]
    assert torch.autograd.grad(grad.sum(), bias)[0].tolist() == [2, 0, 2, 0]
