"""torch.library.opcheck for every registered op: schema, fake implementation, autograd registration, AOT dispatch."""

from __future__ import annotations

import pytest
import torch
from ops.cases import ADAM, SGD, STEP, Case

import pns_fast as pns
from pns_fast import ops

F32, F64 = torch.float32, torch.float64
OPS = torch.ops.pns_fast


def rand(*shape, dtype=F64, grad=False):
    g = torch.Generator().manual_seed(sum(shape) + 1)
    return torch.rand(shape, generator=g, dtype=F64).sub(0.4).to(dtype).requires_grad_(grad)


def on(*shape):
    return rand(*shape) > 0


def trainer_arguments(optimizer, loss="mse", scores=False, **changes):
    case = Case((3, 7, 2), loss, n=20)
    arguments = case.arguments()
    options = {**case.options(optimizer, 2), **changes}
    if scores:
        options |= {"scores": rand(*arguments[0].shape, dtype=F32), "density": 0.5}
    return arguments, options


def gradient_arguments(loss, **changes):
    case = Case((3, 7, 2), loss, n=20)
    p, mask, widths, x, y, _, _, dataset, _ = case.arguments()
    return (p, mask, widths, x, y, dataset), {"loss": loss, **changes}


# grad, x, weight and mask of a convolution; stride, padding and dilation
CONV = rand(3, 4, 2, 6), rand(3, 2, 5, 6), rand(4, 2, 3, 2), on(4, 2, 3, 2)
GEOMETRY = [2, 1], [1, 1], [2, 2]

SAMPLES = {
    "topk_mask rows": ("topk_mask", (rand(3, 5), 2), {}),
    "topk_mask density": ("topk_mask", (rand(7, dtype=F32), 0.3), {}),
    "topk_mask legacy": ("topk_mask", (rand(4, 4, dtype=torch.float16), 3), {"ties": "legacy"}),
    "topk_mask strided": ("topk_mask", (rand(6, 5).T, 3), {}),
    "topk_mask empty": ("topk_mask", (rand(0, 5), 2), {}),
    "topk_mask list": ("topk_mask.list", ([rand(3, 5), rand(0), rand(7)], 4), {}),
    "topk_mask list density": ("topk_mask.list", ([rand(4, 3).T, rand(2)], 0.5), {"ties": "legacy"}),
    "topk_mask half hint": (
        "topk_mask",
        (rand(2, 9, dtype=torch.bfloat16), 3),
        {"hint": rand(2, dtype=torch.bfloat16)},
    ),
    "topk_mask list hint": ("topk_mask.list", ([rand(4, 3), rand(2)], 5), {"hint": rand(1)[0]}),
    "topk_mask threshold": ("topk_mask.threshold", (rand(3, 5, dtype=F32), 2), {"hint": rand(3, dtype=F32)}),
    "topk_mask threshold f64": ("topk_mask.threshold", (rand(2, 3, 5), 2), {}),
    "topk_mask threshold f16": ("topk_mask.threshold", (rand(7, dtype=torch.float16), 0.5), {"ties": "legacy"}),
    "topk_mask threshold bf16": ("topk_mask.threshold", (rand(7, dtype=torch.bfloat16), 0.5), {}),
    "topk_mask list threshold": ("topk_mask.list_threshold", ([rand(3, 5), rand(0), rand(7)], 4), {}),
    "topk_mask list threshold bf16": ("topk_mask.list_threshold", ([rand(9, dtype=torch.bfloat16)], 4), {}),
    "topk_mask into": ("topk_mask.into", (rand(3, 5), 2), {"out": on(3, 5), "hint": rand(3)}),
    "topk_mask into f32": ("topk_mask.into", (rand(5, dtype=F32), 0.4), {"out": on(5), "ties": "legacy"}),
    "topk_mask into f16": ("topk_mask.into", (rand(5, dtype=torch.float16), 2), {"out": on(5)}),
    "topk_mask list into": ("topk_mask.list_into", ([rand(3, 5), rand(7)], 4), {"out": [on(3, 5), on(7)]}),
    "kth_largest hint": ("kth_largest", (rand(3, 5, dtype=F32), 2), {"hint": rand(3, dtype=F32)}),
    "kth_largest": ("kth_largest", (rand(3, 5), 2), {}),
    "kth_largest half": ("kth_largest", (rand(4, 2, 5, dtype=torch.bfloat16), 5), {}),
    "best_match": ("best_match", (rand(3, 5), on(3, 5), rand(6, 5)), {}),
    # every target finds its match: opcheck compares results with ==, and a distance without one is NaN
    "best_match batched": ("best_match", (rand(2, 3, 5), on(2, 3, 5), rand(2, 9, 5), on(2, 9)), {}),
    "best_match mixed": ("best_match", (rand(3, 5, dtype=F32), on(3, 5), rand(6, 5)), {}),
    "best_match empty": ("best_match", (rand(0, 5), on(0, 5), rand(0, 5)), {}),
    "masked_linear": ("masked_linear", (rand(4, 5, grad=True), rand(3, 5, grad=True), on(3, 5)), {}),
    "masked_linear bias": (
        "masked_linear",
        (rand(4, 5, grad=True), rand(3, 5, grad=True), on(3, 5), rand(3, grad=True)),
        {},
    ),
    "masked_linear batched": (
        "masked_linear",
        (rand(2, 4, 5, dtype=F32), rand(2, 3, 5, dtype=F32, grad=True), on(2, 3, 5), rand(2, 3, dtype=F32)),
        {},
    ),
    "masked_linear float mask": (
        "masked_linear",
        (rand(2, 4, 5), rand(3, 5, grad=True), rand(3, 5, grad=True).detach().requires_grad_()),
        {},
    ),
    "supermask": ("supermask", (rand(3, 4, grad=True), 5), {}),
    "supermask density": ("supermask", (rand(3, 4, dtype=F32), 0.25), {}),
    "masked_product": ("masked_product", (rand(4, 5), rand(3, 5), on(3, 5), rand(3), False), {}),
    "masked_product transposed": ("masked_product", (rand(2, 4, 3), rand(2, 3, 5), on(2, 3, 5), None, True), {}),
    "masked_product strided": ("masked_product", (rand(5, 4).T, rand(5, 3).T, on(5, 3).T, None, False), {}),
    "masked_outer": ("masked_outer", (rand(4, 3), rand(4, 5), on(3, 5)), {}),
    "masked_outer batched": ("masked_outer", (rand(2, 4, 3), rand(2, 4, 5), on(2, 3, 5)), {}),
    "masked_backward": ("masked_backward", (rand(4, 3), rand(4, 5), rand(3, 5), on(3, 5), [True, True, True]), {}),
    "masked_backward of x": (
        "masked_backward",
        (rand(2, 4, 3), rand(2, 4, 5), rand(2, 3, 5), on(2, 3, 5), [True, False, False]),
        {},
    ),
    "masked_outer strided": ("masked_outer", (rand(3, 4).T, rand(5, 4).T, on(5, 3).T), {}),
    "masked_conv2d": (
        "masked_conv2d",
        (rand(3, 2, 5, 6, grad=True), rand(4, 2, 3, 2, grad=True), on(4, 2, 3, 2), rand(4, grad=True), [2, 1], 1, 2),
        {},
    ),
    "masked_conv2d float mask": (
        "masked_conv2d",
        (rand(3, 2, 5, 6, dtype=F32), rand(4, 2, 3, 2, dtype=F32, grad=True), rand(4, 2, 3, 2, dtype=F32)),
        {},
    ),
    "masked_conv": ("masked_conv", (*CONV[1:], rand(4), *GEOMETRY), {}),
    "masked_conv channels last": (
        "masked_conv",
        (*(t.to(memory_format=torch.channels_last) for t in CONV[1:]), None, *GEOMETRY),
        {},
    ),
    "masked_conv_input": ("masked_conv_input", (CONV[0], *CONV[2:], [5, 6], *GEOMETRY), {}),
    "masked_conv_outer": ("masked_conv_outer", (*CONV[:2], CONV[3], *GEOMETRY), {}),
    "masked_conv_backward": ("masked_conv_backward", (*CONV, *GEOMETRY, [True, True, True]), {}),
    "masked_conv_backward of x": ("masked_conv_backward", (*CONV, *GEOMETRY, [True, False, False]), {}),
    "masked_conv_backward of bias": ("masked_conv_backward", (*CONV, *GEOMETRY, [False, False, True]), {}),
    "mlp_trainer adam": ("mlp_trainer", *trainer_arguments(ADAM)),
    "mlp_trainer sgd": ("mlp_trainer", *trainer_arguments(SGD, "cross_entropy", schedule="cosine")),
    "mlp_trainer steps": ("mlp_trainer", *trainer_arguments(ADAM, **STEP)),
    "mlp_trainer edge-popup": ("mlp_trainer", *trainer_arguments(SGD, scores=True, anneal=True)),
    "mlp_trainer no epoch": ("mlp_trainer", *trainer_arguments(SGD, epochs=0)),
    "mlp_gradients": ("mlp_gradients", *gradient_arguments("mse")),
    "mlp_gradients labels": ("mlp_gradients", *gradient_arguments("cross_entropy", dense_from=0.0)),
}


def overload(name):
    packet, _, which = name.partition(".")
    return getattr(getattr(OPS, packet), which or "default")


@pytest.mark.parametrize("sample", SAMPLES)
def test_opcheck(sample):
    name, arguments, options = SAMPLES[sample]
    torch.library.opcheck(overload(name), arguments, options)


def test_every_registered_op_has_samples():
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("pns_fast::")}
    sampled = {f"pns_fast::{name}" for name, _, _ in SAMPLES.values()}
    assert registered == sampled


def test_every_kernel_of_the_api_is_a_torch_op():
    for name in ("topk_mask", "kth_largest", "best_match", "masked_linear", "masked_conv2d", "supermask"):
        assert hasattr(pns.ops, name)
        assert hasattr(pns.reference, name)
        assert hasattr(OPS, name), f"torch.ops.pns_fast.{name}"


@pytest.mark.parametrize("sample", [s for s in SAMPLES if "mask" not in s or "topk" in s])
def test_outputs_of_non_differentiable_ops_require_no_gradient(sample):
    name, arguments, options = SAMPLES[sample]
    result = overload(name)(*arguments, **options)
    results = result if isinstance(result, tuple | list) else [result]
    leaves = [t for r in results for t in (r if isinstance(r, list) else [r])]
    assert not any(t.requires_grad for t in leaves)


WRONG_PRODUCTS = {
    "mask larger than weight": lambda: OPS.masked_product(rand(4, 5), rand(3, 5), on(300, 500), None, False),
    "weight smaller than mask": lambda: OPS.masked_product(rand(4, 5), rand(1, 1), on(3, 5), None, False),
    "x narrower": lambda: OPS.masked_product(rand(4, 2), rand(3, 5), on(3, 5), None, False),
    "bias shorter": lambda: OPS.masked_product(rand(4, 5), rand(3, 5), on(3, 5), rand(1), False),
    "dtypes": lambda: OPS.masked_product(rand(4, 5), rand(3, 5, dtype=F32), on(3, 5), None, False),
    "float mask": lambda: OPS.masked_product(rand(4, 5), rand(3, 5), rand(3, 5), None, False),
    "half": lambda: OPS.masked_product(rand(4, 5).half(), rand(3, 5).half(), on(3, 5), None, False),
    "outer: batches": lambda: OPS.masked_outer(rand(1, 3), rand(400, 5), on(3, 5)),
    "outer: mask": lambda: OPS.masked_outer(rand(4, 3), rand(4, 5), on(30, 50)),
    "backward: batches": lambda: OPS.masked_backward(rand(4, 3), rand(1, 5), rand(3, 5), on(3, 5), [True, True, True]),
    "backward: x": lambda: OPS.masked_backward(rand(4, 3), rand(4, 2), rand(3, 5), on(3, 5), [True, True, True]),
    "backward: grad": lambda: OPS.masked_backward(rand(4, 2), rand(4, 5), rand(3, 5), on(3, 5), [False, True, False]),
    "backward: mask": lambda: OPS.masked_backward(rand(4, 3), rand(4, 5), rand(3, 5), on(2, 5), [False, True, False]),
    "outer: dtypes": lambda: OPS.masked_outer(rand(4, 3, dtype=F32), rand(4, 5), on(3, 5)),
    "conv: mask": lambda: OPS.masked_conv(*CONV[1:3], on(40, 2, 3, 2), None, *GEOMETRY),
    "conv: float mask": lambda: OPS.masked_conv(*CONV[1:3], CONV[2], None, *GEOMETRY),
    "conv: bias": lambda: OPS.masked_conv(*CONV[1:], rand(5), *GEOMETRY),
    "conv: padding": lambda: OPS.masked_conv(*CONV[1:], None, [1, 1], [0, -1], [1, 1]),
    "conv input: size": lambda: OPS.masked_conv_input(CONV[0], *CONV[2:], [50, 60], *GEOMETRY),
    "conv input: grad": lambda: OPS.masked_conv_input(CONV[0][:, :3], *CONV[2:], [5, 6], *GEOMETRY),
    "conv input: dtypes": lambda: OPS.masked_conv_input(CONV[0].float(), *CONV[2:], [5, 6], *GEOMETRY),
    "conv outer: batches": lambda: OPS.masked_conv_outer(CONV[0][:1], CONV[1], CONV[3], *GEOMETRY),
    "conv outer: mask": lambda: OPS.masked_conv_outer(*CONV[:2], on(4, 3, 3, 2), *GEOMETRY),
    "conv outer: dtypes": lambda: OPS.masked_conv_outer(CONV[0].float(), CONV[1], CONV[3], *GEOMETRY),
    "conv backward: grad": lambda: OPS.masked_conv_backward(CONV[0][:, :, :1], *CONV[1:], *GEOMETRY, [True] * 3),
    "conv backward: x": lambda: OPS.masked_conv_backward(
        CONV[0], CONV[1][:, :1], *CONV[2:], *GEOMETRY, [False, True, False]
    ),
}


@pytest.mark.parametrize("call", WRONG_PRODUCTS)
def test_registered_products_check_before_a_pointer_leaves_python(call):
    with pytest.raises((ValueError, TypeError)):
        WRONG_PRODUCTS[call]()


def test_the_ops_namespace_lists_what_it_exports():
    assert set(ops.__all__) >= {"topk_mask", "kth_largest", "best_match", "masked_linear", "supermask", "mlp_trainer"}
