"""masked_linear on CUDA, as far as it can be seen without a GPU: which path a call takes, and the dense one."""

from __future__ import annotations

import math

import pytest
import torch
from ops.layers import F32, F64, layer
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pns_fast import reference
from pns_fast.ops import _masked_cuda
from pns_fast.ops._masked_cuda import dense_linear, most_kept

SIDE = 1024


def densest(width: int, is_captured: bool, n_products: int = 3, n_samples: int = 256) -> float:
    return most_kept(width * width, n_samples, n_products, is_captured) / width**2


def test_the_sparse_path_is_for_large_sparse_layers():
    assert 0.1 <= densest(4 * SIDE, False) < 0.2  # faster than cuBLAS up to 0.1, and never slower
    assert 0.1 <= densest(4 * SIDE, False, n_products=1) < 0.2
    assert densest(SIDE, False) < 0  # there the host is what takes time
    assert densest(SIDE, False, n_products=1) < 0


def test_graphs_take_it_sooner():
    assert 0.1 <= densest(SIDE, True) < _masked_cuda.INDEXED_BELOW
    assert densest(SIDE, False) < densest(SIDE, True)
    assert densest(4 * SIDE, False) < densest(4 * SIDE, True) < _masked_cuda.INDEXED_BELOW


@pytest.mark.parametrize("is_captured", [False, True])
def test_it_is_not_for_small_layers_or_few_samples(is_captured):
    assert most_kept(100 * 100, 32, 3, is_captured) == -1
    assert most_kept(32 * 100 * 100, 0, 3, is_captured) == -1
    assert most_kept(SIDE * SIDE, 32, 3, is_captured) == -1


class _Calls(TorchDispatchMode):
    """The torch ops called, views apart: on CUDA a launch each."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view:
            self.names.append(function.overloadpacket.__name__)
        return function(*args, **kwargs or {})


def calls(linear, x, weight, mask, bias):
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    with _Calls() as seen:
        y = linear(x, weight, mask, bias)
        torch.autograd.grad(y.sum(), (x, weight))
    return seen.names


@pytest.mark.parametrize("has_bias", [False, True])
def test_the_dense_path_launches_what_a_product_does(has_bias):
    x, weight, mask, bias = layer(5, 4, 3, None, F32)
    arguments = (x, weight, mask, bias if has_bias else None)
    ours = calls(dense_linear, *arguments)
    theirs = calls(lambda x, weight, mask, bias: F.linear(x, weight * mask, bias), *arguments)
    assert ours.count("threshold_backward") == 2
    assert [name.replace("threshold_backward", "mul") for name in ours] == theirs


@pytest.mark.parametrize("n", [None, 2])
def test_the_dense_path_equals_the_twin_and_reads_nothing_pruned(n):
    x, weight, mask, bias = layer(5, 4, 3, n, F64)
    weight = torch.where(mask, weight, torch.tensor([math.inf, math.nan, -math.inf, math.nan], dtype=F64))
    inputs = [t.clone().requires_grad_() for t in (x, weight, bias)]
    clean = [t.clone().requires_grad_() for t in (x, torch.where(mask, weight, 0.0), bias)]
    y = dense_linear(inputs[0], inputs[1], mask, inputs[2])
    expected = reference.masked_linear(clean[0], clean[1], mask, clean[2])
    torch.testing.assert_close(y, expected)
    got, expected = (torch.autograd.grad(t.square().sum(), ts) for t, ts in ((y, inputs), (expected, clean)))
    torch.testing.assert_close(got, expected)
    assert bool((got[1][~mask] == 0).all())


def test_a_mask_of_other_bytes_than_one():
    _, weight, mask, _ = layer(5, 4, 3, None, F32)
    odd = (mask.to(torch.uint8) * 2).view(torch.bool)
    assert torch.equal(_masked_cuda.masked(weight, odd, 0), torch.where(mask, weight, 0.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, F32, F64], ids=str)
def test_the_masked_weight_has_its_dtype(dtype):
    _, weight, mask, _ = layer(5, 4, 3, None, F32)
    kept = _masked_cuda.masked(weight.to(dtype), mask, 0)
    assert kept.dtype == dtype
    assert torch.equal(kept, torch.where(mask, weight.to(dtype), 0))
