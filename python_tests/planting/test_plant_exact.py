"""Exactness of planting as a property, over random architectures and over the tasks' tickets."""

import pytest
import torch
from planting.cases import assert_planted, random_case
from tolerances import TOLERANCES

import pns_fast as pns

RTOL, _ = TOLERANCES["planted_output"]


@pytest.mark.parametrize("assignment", ["greedy", "optimal"])
def test_200_random_tickets_and_mothers(assignment):
    for seed in range(200):
        layers, mother, x = random_case(seed)
        before = mother.flatten()
        planted = pns.plant(layers, mother, assignment=assignment)
        ticket = pns.Ticket([w for w, _ in layers], [b for _, b in layers])
        assert_planted(planted, ticket, mother, x)
        assert torch.equal(mother.flatten(), before)


@pytest.mark.parametrize("assignment", ["greedy", "optimal"])
@pytest.mark.parametrize("name", pns.tasks.names())
def test_tickets_of_the_tasks(name, assignment):
    task = pns.tasks.get(name)
    for depth in (3, 4, 5, 6, 8, 10):
        ticket, mother = task.ticket(depth), pns.init_population(task.widths(depth, 100), n=2, seed=depth)
        planted = pns.plant(ticket, mother, assignment=assignment)
        x = task.sample(500).x_train
        assert planted.ticket_forward(x).dtype == torch.float32
        assert_planted(planted, ticket, mother, x.double())
        assert sum(w.sum().item() for w in planted.masks.weights) == 2 * ticket.kept_weights
        assert planted.fallbacks.tolist() == [0, 0]


def test_the_planted_parameters_alone_are_the_ticket():
    """Without the masks' help: plain nn.Linear networks of the masked parameters."""
    task = pns.tasks.get("circle")
    planted = pns.plant(task.ticket(5), pns.init_population(task.widths(5, 100), n=2, seed=1))
    flat = planted.population.flatten() * planted.masks.flatten()
    x = task.sample(100).x_train
    for i in range(2):
        module = pns.Population.from_flat(flat, planted.population.widths).module(i).double()
        output = module(x.double()) * planted.output_scale[i]
        expected = task.ticket(5).forward(x.double())
        assert (output - expected).abs().max() <= RTOL * expected.abs().max()
