"""plant_module: the masked planted network is the target, up to its output scale, whatever the structure."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

import pns_fast as pns


def sparse(model, seed, density=0.3):
    """Random parameters of which a few are not zero; batch norms with statistics of their own."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for t in (module.weight.data, module.bias.data, module.running_mean):
                t.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            for p in module.parameters(recurse=False):
                keep = torch.rand(p.shape, generator=generator) < density
                p.data = torch.randn(p.shape, generator=generator) * keep
    return model.eval()


class Block(nn.Module):
    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out)
        self.conv2, self.norm2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)
        same = n_in == n_out and stride == 1
        self.shortcut = (
            nn.Sequential()
            if same
            else nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))
        )

    def forward(self, x):
        h = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        h += self.shortcut(x)
        return F.relu(h)


class Functional(nn.Module):
    """Pooling, dropout and flatten as functions; a skip around a linear layer."""

    def __init__(self, width):
        super().__init__()
        self.conv, self.first = nn.Conv2d(2, width, 3), nn.Linear(width * 4, 2 * width)
        self.hidden, self.out = nn.Linear(2 * width, 2 * width), nn.Linear(2 * width, 3)

    def forward(self, x):
        h = F.avg_pool2d(F.max_pool2d(self.conv(x).relu(), 2), 1).flatten(1)
        h = self.first(F.dropout(h, training=self.training)).relu()
        return self.out(F.relu(torch.add(self.hidden(h), h)))


def plain(width):
    return nn.Sequential(
        *(nn.Conv2d(2, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout2d()),
        *(nn.Conv2d(width, 2 * width, (1, 3)), nn.BatchNorm2d(2 * width), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(4 * width, 5), nn.BatchNorm1d(5)),
    )


def residual(width):
    return nn.Sequential(
        *(nn.Conv2d(2, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU()),
        *(Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 2 * width, 1)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 4)),
    )


NETWORKS = {"plain": (plain, 8), "residual": (residual, 8), "functional": (Functional, 6)}


def difference(planted, target, x):
    wanted = target(x).detach()
    return float((planted.ticket_forward(x) - wanted).abs().max() / wanted.abs().max().clamp(min=1e-3))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("density", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("factor", [1, 3])
def test_exact(name, density, factor):
    make, size = NETWORKS[name]
    for seed in range(3):
        target, mother = sparse(make(4), seed, density), sparse(make(4 * factor), seed + 100, 1.0)
        before = {k: v.clone() for k, v in mother.state_dict().items()}
        planted = pns.plant_module(target, mother)
        x = torch.randn(9, 2, size, size, generator=torch.Generator().manual_seed(seed))
        assert difference(planted, target, x) < 1e-5
        assert all(torch.equal(v, before[k]) for k, v in mother.state_dict().items())
        for layer, index in planted.neurons.items():
            placed = index[index >= 0]
            assert len(placed.unique()) == len(placed), layer


def test_what_is_no_part_of_the_ticket_stays():
    target, mother = sparse(plain(4), 3, 0.2), sparse(plain(12), 103, 1.0)
    planted = pns.plant_module(target, mother)
    # the second convolution has a batch norm folded into it, the first has none
    own, there = dict(mother.named_parameters()), dict(planted.module.named_parameters())
    for name in ("0.weight", "0.bias"):
        assert torch.equal(own[name][~planted.masks[name]], there[name][~planted.masks[name]])
        assert planted.masks[name].any()
    assert set(planted.masks) == {f"{layer}.{p}" for layer in (0, 4, 9) for p in ("weight", "bias")}
    # hidden: the ticket's weights look like their neighbours
    mask = planted.masks["0.weight"]
    ratio = there["0.weight"][mask].abs().mean() / there["0.weight"][~mask].abs().mean()
    assert 0.3 < ratio < 3


def test_masks_select_the_ticket_in_the_module():
    target, mother = sparse(plain(4), 0), plain(12)
    planted, x = pns.plant_module(target, mother), torch.randn(4, 2, 8, 8)
    ticket = {n: p * planted.masks[n] for n, p in planted.module.named_parameters()}
    output = functional_call(planted.module, ticket, (x,)) * planted.output_scale
    torch.testing.assert_close(output.float(), planted.ticket_forward(x))


@pytest.mark.parametrize("task", ["circle", "helix"])
def test_linear_networks_are_planted_as_populations_are(task):
    task = pns.tasks.get(task)
    mothers = pns.init_population(task.widths(5, 60), n=1, seed=4)
    ticket = task.ticket(5)
    expected = pns.plant(ticket, mothers)
    target = pns.Population([w[None].float() for w in ticket.weights], [b[None].float() for b in ticket.biases]).module(
        0
    )
    planted = pns.plant_module(target, mothers.module(0))
    for neurons, wanted in zip(planted.neurons.values(), expected.neurons, strict=True):
        assert torch.equal(neurons, wanted[0])
    assert planted.fallbacks == int(expected.fallbacks[0])
    assert planted.tied == 0
    torch.testing.assert_close(planted.output_scale, expected.output_scale[0], rtol=1e-5, atol=0)
    wanted = expected.masks.named(0)
    assert all(torch.equal(mask, wanted[name]) for name, mask in planted.masks.items())


def test_sums_tie_places_and_scales():
    target, mother = sparse(residual(4), 1, 1.0), sparse(residual(8), 2, 1.0)
    planted = pns.plant_module(target, mother)
    first, second = planted.neurons["0"], planted.neurons["3.conv2"]
    assert torch.equal(first, second)  # both feed the sum of the first block
    assert planted.tied == 4 + 8 + 8  # the first block; the second's shortcut or its convolution; the third


def test_a_masked_target_is_planted_without_what_is_pruned():
    dense = plain(4)
    masks = pns.prune_module(dense, "magnitude", 0.2)
    target = pns.nn.finalize(dense, masks).eval()
    planted = pns.plant_module(target, plain(10))
    assert difference(planted, target, torch.randn(4, 2, 8, 8)) < 1e-5


def images(seed, n_channels=2, size=8):
    return torch.randn(4, n_channels, size, size, generator=torch.Generator().manual_seed(seed))


def random_masks(model, seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(m.shape, generator=generator) < 0.5 for name, m in pns.nn.get_masks(model).items()}


def test_masked_layers_before_a_batch_norm():
    target = pns.nn.mask_model(sparse(plain(4), 0, 1.0))
    pns.nn.set_masks(target, random_masks(target, 1))
    assert not target[4].bias_mask.all()  # which the norm's own shift must not be pruned with
    planted = pns.plant_module(target, sparse(plain(10), 2, 1.0))
    assert difference(planted, target, images(3)) < 1e-5


def test_a_supermask_target():
    torch.manual_seed(0)
    target = pns.nn.supermask_model(sparse(plain(4), 0, 1.0), keep=0.4).eval()
    assert difference(pns.plant_module(target, sparse(plain(10), 2, 1.0)), target, images(3)) < 1e-5


def test_a_masked_mother_counts_with_zeros_where_it_is_pruned():
    target, mother = sparse(plain(4), 0, 0.5), pns.nn.mask_model(sparse(plain(10), 2, 1.0))
    pns.nn.set_masks(mother, random_masks(mother, 1))
    x, before = images(3), {k: v.clone() for k, v in mother.state_dict().items()}
    assert difference(pns.plant_module(target, mother), target, x) < 1e-5
    assert all(torch.equal(v, before[k]) for k, v in mother.state_dict().items())


class AddsToItsInput(nn.Module):
    def __init__(self, width, has_head):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, width, 3, 1, 1), nn.Conv2d(width, 2, 3, 1, 1)
        self.head = nn.Linear(2 * 64, 3) if has_head else None

    def forward(self, x):
        h = x + self.second(F.relu(self.first(x)))
        return h if self.head is None else self.head(F.relu(h).flatten(1))


@pytest.mark.parametrize("has_head", [False, True])
def test_a_sum_with_the_input_keeps_its_places_and_scale(has_head):
    target, mother = (sparse(AddsToItsInput(width, has_head), width, 0.5) for width in (3, 20))
    planted = pns.plant_module(target, mother)
    assert difference(planted, target, images(0)) < 1e-5
    assert planted.neurons["second"].tolist() == [0, 1]


class Named(nn.Module):
    """Linear layers in the order of ``names``."""

    def __init__(self, width, names):
        super().__init__()
        self.names, sizes = names, (2, width, width, 3)
        for name in sorted(names):  # registered in the same order in each
            at = names.index(name)
            setattr(self, name, nn.Linear(sizes[at], sizes[at + 1]))

    def forward(self, x):
        first, second, third = (getattr(self, name) for name in self.names)
        return third(F.relu(second(F.relu(first(x)))))


@pytest.mark.parametrize("names", ["abc", "acb", "xyz"])
def test_layers_go_together_by_their_order_whatever_their_names(names):
    target, mother = sparse(Named(3, "abc"), 0, 0.7), sparse(Named(20, names), 1, 1.0)
    planted = pns.plant_module(target, mother)
    assert difference(planted, target, torch.randn(9, 2, generator=torch.Generator().manual_seed(0))) < 1e-5
    assert list(planted.neurons) == list(names)


def twice(width, is_tied):
    """A layer that is there twice, or two layers of one weight."""
    layer, other = nn.Linear(width, width), nn.Linear(width, width)
    other.weight = layer.weight
    return nn.Sequential(*(nn.Linear(2, width), layer, nn.ReLU(), other if is_tied else layer, nn.Linear(width, 2)))


def test_a_layer_there_twice():
    for is_tied in (False, True):
        with pytest.raises(ValueError, match=r"mother: \d.weight is used twice"):
            pns.plant_module(sparse(twice(3, is_tied), 0), sparse(twice(20, is_tied), 1))
    layer = nn.Linear(2, 2)
    norms = nn.Sequential(layer, nn.BatchNorm1d(2), layer, nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match="target: batch norm 1 follows no layer of its own"):
        pns.plant_module(norms, norms)


class NamedTwice(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, width, 3), nn.BatchNorm2d(width), nn.Linear(width * 16, 3)
        self.features = nn.Sequential(self.conv, self.norm, nn.ReLU())

    def forward(self, x):
        return self.head(self.features(x).flatten(1))


def test_a_norm_of_two_names_is_folded():
    target, mother = sparse(NamedTwice(3), 0, 0.7), sparse(NamedTwice(20), 1, 1.0)
    assert difference(pns.plant_module(target, mother), target, images(0, size=6)) < 1e-5


def test_a_layer_of_two_names_is_left_as_it_is_by_a_ticket():
    target, mother = sparse(Functional(3), 0), sparse(Functional(20), 1)
    mother.again = mother.hidden
    planted, x = pns.plant_module(target, mother), images(0, size=6)
    parameters, output = list(planted.module.parameters()), planted.module(x)
    assert difference(planted, target, x) < 1e-5
    assert all(a is b for a, b in zip(planted.module.parameters(), parameters, strict=True))
    assert torch.equal(planted.module(x), output)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_networks_inside_what_torch_wraps_around_them(wrap):
    target, mother, x = sparse(plain(4), 0), sparse(plain(10), 1), torch.randn(5, 2, 8, 8)
    planted = pns.plant_module(wrap(target), wrap(mother))
    alone = pns.plant_module(target, mother)
    assert torch.equal(planted.ticket_forward(x), alone.ticket_forward(x))
    assert planted.masks.keys() == alone.masks.keys()


def test_mothers_that_cannot_be_written_to():
    target, mother = sparse(plain(4), 0), sparse(plain(10), 1)
    nn.utils.parametrizations.weight_norm(mother[0])
    with pytest.raises(ValueError, match=r"mother: 0\.weight is computed"):
        pns.plant_module(target, mother)
    with pytest.raises(ValueError, match="mother: 0 chooses its parameters by scores"):
        pns.plant_module(target, pns.nn.supermask_model(sparse(plain(10), 1), 0.5))


def test_a_target_without_parameters():
    target = sparse(Functional(3), 0, 0.0)
    planted = pns.plant_module(target, Functional(5))
    assert not any(mask.any() for mask in planted.masks.values())
    assert torch.equal(planted.ticket_forward(torch.randn(2, 2, 6, 6)), torch.zeros(2, 3))


def two(*layers):
    return nn.Sequential(*layers)


def test_masks_of_either_network_count():
    masked = [pns.nn.mask_model(sparse(plain(width), width, 1.0)) for width in (4, 10)]
    for model in masked:
        pns.nn.set_masks(model, pns.prune_module(model, "random", 0.5, seed=3))
    planted = pns.plant_module(*masked)
    assert difference(planted, masked[0], images(3)) < 1e-5


def test_a_sum_with_an_input_that_is_flattened_first():
    class Around(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.into, self.back, self.out = nn.Linear(2, width), nn.Linear(width, 2), nn.Linear(2, 3)

        def forward(self, x):
            return self.out(F.relu(x + self.back(F.relu(self.into(x.flatten(1))))))

    target, mother = sparse(Around(3), 0, 0.7), sparse(Around(20), 1, 1.0)
    planted = pns.plant_module(target, mother)
    assert difference(planted, target, torch.randn(9, 2, generator=torch.Generator().manual_seed(0))) < 1e-5


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def positions():
    return two(nn.Linear(2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(6, 2))


@pytest.mark.parametrize(
    ("target", "mother", "message"),
    [
        (plain(8), plain(4), "target: 0 is wider than the mother's"),
        (plain(4), residual(4), "mother: expected the structure of the target"),
        (two(nn.Linear(2, 2), nn.ReLU()), two(nn.Linear(2, 2), nn.Tanh()), r"1 \(ReLU\) where the mother has 1 \(T"),
        (two(nn.Linear(2, 2), nn.Tanh()), two(nn.Linear(2, 2), nn.Tanh()), r"target: planting cannot pass 1 \(Tanh\)"),
        (two(nn.BatchNorm1d(2)), two(nn.BatchNorm1d(2)), "target: batch norm 0 follows no layer"),
        (two(nn.Linear(2, 2)), two(nn.Linear(2, 2, bias=False)), "mother: 0 has no bias"),
        (two(nn.Conv2d(2, 2, 3)), two(nn.Conv2d(2, 2, 3, stride=2)), r"mother: 0 has stride \(2, 2\), the t"),
        (two(nn.Conv2d(2, 2, 1, groups=2)), two(nn.Conv2d(2, 2, 1, groups=2)), "target: 0 has 2 groups"),
        (two(nn.Linear(2, 2)), two(nn.Linear(3, 2)), "mother: 0 has 3 inputs, the target's 2"),
        (two(nn.Linear(2, 3)), two(nn.Linear(2, 4)), "mother: 0 has 4 outputs, the target's 3"),
        (two(nn.ReLU()), two(nn.ReLU()), "target: expected convolutional or linear layers"),
        (two(Doubled(2, 2)), two(nn.Linear(2, 2)), "target: 0 is a Doubled with a forward of its own"),
        (positions(), positions(), "target: 3 reads the features of several positions flattened"),
    ],
)
def test_what_does_not_fit(target, mother, message):
    with pytest.raises(ValueError, match=message):
        pns.plant_module(target, mother)


def test_what_is_no_module():
    with pytest.raises(TypeError, match=r"mother: expected an nn\.Module, got list"):
        pns.plant_module(plain(4), [])
