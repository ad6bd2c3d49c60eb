"""mask_model, finalize, masks by name: whole models of all kinds."""

from __future__ import annotations

import copy

import pytest
import torch
from tolerances import TOLERANCES
from torch import nn

import pns_fast as pns
from pns_fast.nn import (
    MaskedConv2d,
    MaskedLinear,
    SupermaskLinear,
    finalize,
    get_masks,
    keep_pruned,
    mask_model,
    masked_parameters,
    prune_module,
    set_masks,
    supermask_model,
)


class Tied(nn.Module):
    """A module used twice, and another that shares its weight."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.again = self.one
        self.other = nn.Linear(4, 4, bias=False)
        self.other.weight = self.one.weight

    def forward(self, x):
        return self.other(self.again(self.one(x).relu()))


class Tagger(nn.Module):
    """An output layer tied to an embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.hidden = nn.Linear(4, 4)
        self.output = nn.Linear(4, 9, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, x):
        return self.output(self.hidden(self.embedding(x)))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 5), nn.Linear(5, 2)
    )


def randomly(masks, density=0.4):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(mask.shape, generator=generator) < density for name, mask in masks.items()}


def masked(model):
    model = mask_model(model)
    set_masks(model, randomly(get_masks(model)))
    return model


MODELS = [
    (lambda: nn.Linear(4, 3), (4,)),
    (lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2, bias=False)), (4,)),
    (convolutional, (1, 8, 8)),
    (Tied, (4,)),
    (lambda: mask_model(nn.Linear(4, 3)), (4,)),
]


@pytest.mark.parametrize(("make", "shape"), MODELS)
def test_full_masks_change_nothing_and_finalize_keeps_the_outputs(make, shape):
    model, x = make().eval(), torch.randn(3, *shape)
    before = copy.deepcopy(model.state_dict())
    full = mask_model(model)
    torch.testing.assert_close(full(x), model(x))
    pruned = masked(model)
    assert not torch.allclose(pruned(x), model(x))
    plain = finalize(pruned)
    assert not any(isinstance(m, (MaskedLinear, MaskedConv2d)) for m in plain.modules())
    torch.testing.assert_close(plain(x), pruned(x))
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert not plain.training
    torch.testing.assert_close(mask_model(plain)(x), plain(x))


def test_every_plain_layer_is_masked_and_nothing_else_changes():
    model = convolutional()
    copied = mask_model(model)
    assert [type(m) for m in copied][1:4] == [type(m) for m in model][1:4]
    assert [type(m) for m in (copied[0], *copied[4:])] == [MaskedConv2d, MaskedLinear, MaskedLinear]
    assert list(get_masks(copied)) == [f"{i}.{name}" for i in (0, 4, 5) for name in ("weight", "bias")]
    assert get_masks(model) == {}


def test_convolutions_without_a_masked_layer_are_left_alone():
    model = nn.Sequential(
        nn.Conv2d(2, 2, 3, groups=2),
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(2, 2, 2, padding="same"),
        nn.Conv1d(2, 2, 3),
        nn.ConvTranspose2d(2, 2, 3),
    )
    assert [type(m) for m in mask_model(model)] == [type(m) for m in model]
    with pytest.raises(ValueError, match=r"'0.weight' is a parameter of no masked layer"):
        mask_model(model, {"0.weight": torch.ones(2, 1, 3, 3, dtype=torch.bool)})


def test_masks_of_prune_module_go_into_convolutions():
    model, batch = convolutional(), (torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 0, 1]))
    masks = pns.prune_module(model, "snip", 0.2, batch, nn.functional.cross_entropy)
    pruned = mask_model(model, masks).eval()
    assert all(torch.equal(get_masks(pruned)[name], mask) for name, mask in masks.items())
    torch.testing.assert_close(pruned(batch[0]), finalize(model.eval(), masks)(batch[0]))
    again = pns.prune_module(pruned, "snip", 0.1, batch, nn.functional.cross_entropy)
    assert all((mask <= masks[name]).all() for name, mask in again.items())


def test_hooks_and_attributes_stay():
    model = nn.Sequential(nn.Linear(2, 2))
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    model[0].note = "mine"
    model[0].weight.requires_grad_(False)
    copied = mask_model(model)
    copied(torch.ones(1, 2))
    assert calls == [1]
    assert copied[0].note == finalize(copied)[0].note == "mine"
    assert not finalize(copied)[0].weight.requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, "torch.DoubleTensor"])
def test_type_casts_no_mask(dtype):
    """``Module.type`` casts every buffer, unlike ``to``, ``double`` and ``half``."""
    torch.manual_seed(0)
    model = masked(convolutional())
    masks = {name: mask.clone() for name, mask in get_masks(model).items()}
    assert model.type(dtype) is model
    assert all(m.dtype == torch.bool and torch.equal(m, masks[n]) for n, m in get_masks(model).items())
    x = torch.randn(2, 1, 8, 8, dtype=model[0].weight.dtype)
    y = model(x)
    y.float().sum().backward()
    assert not model[0].weight.grad[~masks["0.weight"]].any()
    assert torch.allclose(finalize(model.eval())(x), model(x), rtol=0.05, atol=0.05)
    again = mask_model(convolutional()).type(dtype)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(x), model(x))


@pytest.mark.parametrize("assign", [False, True])
def test_a_checkpoint_that_was_cast_brings_bool_masks(assign):
    model = masked(convolutional())
    halves = {name: t.half() for name, t in model.state_dict().items()}
    again = mask_model(convolutional())
    again.load_state_dict(halves, assign=assign)
    assert again[0].weight.dtype == (torch.float16 if assign else torch.float32)
    for name, mask in get_masks(again).items():
        assert mask.dtype == torch.bool
        assert torch.equal(mask, get_masks(model)[name])
    assert finalize(again)[4].weight[~get_masks(model)["4.weight"]].count_nonzero() == 0


def test_shared_modules_and_parameters_stay_shared_and_have_one_mask():
    copied = mask_model(Tied())
    assert copied.again is copied.one
    assert copied.other.weight is copied.one.weight
    assert list(get_masks(copied)) == [name for name, _ in copied.named_parameters()] == ["one.weight", "one.bias"]
    set_masks(copied, {"other.weight": torch.eye(4, dtype=torch.bool)})
    assert copied.one.weight_mask.sum() == 4
    plain = finalize(copied)
    assert plain.other.weight is plain.one.weight
    assert len(list(plain.parameters())) == 2


@pytest.mark.parametrize("name", ["one.weight", "again.weight", "other.weight"])
def test_a_shared_parameter_has_a_mask_by_each_of_its_names(name):
    eye, x = torch.eye(4, dtype=torch.bool), torch.randn(3, 4)
    copied = mask_model(Tied(), {name: eye})
    assert torch.equal(get_masks(copied)["one.weight"], eye)
    assert torch.equal(copied.other.weight_mask, eye)
    with torch.no_grad():
        assert torch.allclose(copied(x), finalize(copied)(x), atol=1e-6)
    pruned = prune_module(copied, "magnitude", 1.0, masks={name: eye})
    assert {n: int(m.sum()) for n, m in pruned.items()} == {"one.weight": 4, "one.bias": 4}


def test_different_masks_of_one_parameter_are_refused():
    eye, full = torch.eye(4, dtype=torch.bool), torch.ones(4, 4, dtype=torch.bool)
    model, masks = mask_model(Tied()), {"one.weight": eye, "again.weight": full}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    calls = [
        lambda: set_masks(model, masks),
        lambda: finalize(Tied(), masks),
        lambda: keep_pruned(optimizer, model, masks),
        lambda: prune_module(model, "magnitude", 0.5, masks=masks),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"masks: 'one\.weight' and 'again\.weight' are one parameter"):
            call()
    assert model.one.weight_mask.all()
    set_masks(model, {"one.weight": eye, "again.weight": eye.clone()})
    assert model.one.weight_mask.sum() == 4


def test_one_mask_of_a_shared_parameter_wherever_its_layers_go():
    moved = mask_model(Tied())._apply(lambda t: t.clone())  # as .to(device): buffers part, parameters not
    assert moved.other.weight is moved.one.weight
    set_masks(moved, {"one.weight": torch.eye(4, dtype=torch.bool)})
    assert torch.equal(moved.other.weight_mask, moved.one.weight_mask)
    part = Tied()
    part.other = MaskedLinear.from_linear(part.one, torch.eye(4, dtype=torch.bool))
    part.other.weight = part.one.weight
    copied = mask_model(part)
    assert copied.one.weight_mask is copied.other.weight_mask
    assert copied.one.weight_mask.sum() == 4


def test_one_score_of_a_shared_parameter():
    model, x = supermask_model(Tied(), 0.5), torch.randn(3, 4)
    assert model.other.weight_scores is model.one.weight_scores
    torch.testing.assert_close(finalize(model)(x), model(x))
    assert finalize(model).one.weight.count_nonzero() == 8


def test_parametrised_masked_layers():
    model = mask_model(nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(3))))
    for layer in model:
        nn.utils.parametrizations.weight_norm(layer)
    assert list(get_masks(model)) == ["0.weight", "1.weight", "2.weight"]
    with pytest.raises(ValueError, match="weight: expected a parameter of a ParametrizedMaskedLinear"):
        finalize(model)
    with pytest.raises(ValueError, match="weight: expected a parameter of a ParametrizedSupermaskLinear"):
        nn.utils.parametrizations.weight_norm(SupermaskLinear(2, 2, 0.5)).finalize()


def test_a_layer_tied_to_an_embedding_is_left_alone():
    copied = mask_model(Tagger())
    assert type(copied.output) is nn.Linear
    assert copied.output.weight is copied.embedding.weight
    assert type(copied.hidden) is MaskedLinear
    with pytest.raises(ValueError, match=r"'output.weight' is a parameter of no masked layer"):
        mask_model(Tagger(), {"output.weight": torch.ones(9, 4, dtype=torch.bool)})


def test_layers_whose_weight_is_used_elsewhere_are_left_alone():
    attention = mask_model(nn.MultiheadAttention(8, 2))
    assert type(attention.out_proj) is nn.modules.linear.NonDynamicallyQuantizableLinear
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    model = mask_model(nn.Sequential(encoder, nn.Linear(8, 2))).eval()
    assert list(get_masks(model)) == ["1.weight", "1.bias"]
    x = torch.randn(2, 3, 8)
    with torch.no_grad():  # torch's fused path
        model(x)
    parametrized = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    assert type(mask_model(parametrized)) is type(parametrized)
    lazy = mask_model(nn.Sequential(nn.LazyLinear(3)))
    assert type(lazy[0]) is nn.LazyLinear


def test_supermask_layers():
    model = nn.Sequential(SupermaskLinear(8, 4, 0.5), mask_model(nn.Linear(4, 4)))
    assert list(get_masks(model)) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert get_masks(model)["0.weight"].sum() == 16
    with pytest.raises(ValueError, match=r"0\.weight"):
        set_masks(model, {"0.weight": torch.ones(4, 8, dtype=torch.bool)})
    x = torch.randn(3, 8)
    torch.testing.assert_close(finalize(model)(x), model(x))


def test_names_without_the_prefixes_of_wrappers():
    model = mask_model(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    names = list(get_masks(model))
    assert list(get_masks(nn.DataParallel(model))) == names
    assert list(get_masks(torch.compile(model))) == names
    set_masks(torch.compile(model), {"0.weight": torch.zeros(2, 2, dtype=torch.bool)})
    assert not model[0].weight_mask.any()
    assert type(mask_model(torch.compile(nn.Linear(2, 2)))) is MaskedLinear


def test_compiled_whole_model():
    model, x = masked(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))), torch.randn(5, 4)
    output = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(output, model(x))


def test_finalize_writes_masks_of_any_parameter():
    model = convolutional()
    masks = randomly({"0.weight": model[0].weight, "4.weight": model[4].weight})
    plain = finalize(model, masks)
    assert torch.equal(plain[0].weight, model[0].weight * masks["0.weight"])
    assert torch.equal(plain[4].weight, model[4].weight * masks["4.weight"])
    assert torch.equal(plain[5].weight, model[5].weight)


def test_a_planted_ticket_as_a_masked_module():
    task = pns.tasks.get("circle")
    planted = pns.plant(task.ticket(4), pns.init_population(task.widths(depth=4, width=40), n=2, seed=0))
    x = task.sample(n=100, seed=0).x_train
    for i in range(2):
        model = mask_model(planted.population.module(i), planted.masks.named(i))
        expected = planted.ticket_forward(x)[i]
        rtol, _ = TOLERANCES["planted_output"]
        atol = rtol * expected.abs().max().item()
        torch.testing.assert_close(
            model(x) * planted.output_scale[i], expected, rtol=rtol, atol=atol, check_dtype=False
        )


def test_masked_parameters_in_a_synaptic_flow_loop():
    model = masked(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2, bias=False)))
    pairs = list(masked_parameters(model))
    assert [p for _, p in pairs] == [model[0].weight, model[2].weight]
    assert all(mask.shape == p.shape and mask.dtype == torch.bool for mask, p in pairs)
    assert len(list(masked_parameters(model, bias=True))) == 3
    for mask, _ in pairs:
        mask.copy_(torch.zeros_like(mask))
    assert not model[0].weight_mask.any()


EYE = torch.eye(2, dtype=torch.bool)
BAD = [
    ({"1.weight": EYE}, ValueError, r"'1.weight' is no parameter of the model"),
    ({"0.weight": EYE.float()}, TypeError, r"masks\['0.weight'\]: expected a bool tensor"),
    ({"0.weight": EYE[:1]}, ValueError, r"masks\['0.weight'\]: expected shape \[2, 2\], got \[1, 2\]"),
    ({"0.weight": None}, TypeError, r"masks\['0.weight'\]"),
    ({0: EYE}, TypeError, "masks: expected parameter names"),
    ([EYE], TypeError, "masks: expected a dict"),
]


@pytest.mark.parametrize(("masks", "error", "message"), BAD)
def test_wrong_masks(masks, error, message):
    with pytest.raises(error, match=message):
        mask_model(nn.Sequential(nn.Linear(2, 2)), masks)


@pytest.mark.parametrize(("masks", "error", "message"), BAD[1:])
def test_wrong_masks_to_finalize(masks, error, message):
    with pytest.raises(error, match=message):
        finalize(nn.Sequential(nn.Linear(2, 2)), masks)


@pytest.mark.parametrize("function", [mask_model, finalize, get_masks])
def test_what_is_no_model(function):
    with pytest.raises(TypeError, match=r"model: expected an nn\.Module, got list"):
        function([nn.Linear(2, 2)])
