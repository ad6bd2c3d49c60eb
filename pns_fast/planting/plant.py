"""Planting: hide a small known network inside every network of a population."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..networks import Masks, Population
from ..tasks import Ticket
from ..tasks.ticket import as_ticket
from .match import match_greedy, match_optimal, match_outputs

RULES = ("paper",)
ASSIGNMENTS = {"greedy": match_greedy, "optimal": match_optimal}


@dataclass(frozen=True, eq=False)
class Planted:
    """A population with a ticket in each of its networks."""

    population: Population
    masks: Masks  # the ticket's parameters
    output_scale: Tensor  # float64 [N, n_L]: the ticket's output times this is the target's
    neurons: list[Tensor]  # int64 [N, n_l] for each hidden layer and the output layer: where target neurons are
    fallbacks: Tensor  # int64 [N]: hidden target neurons for which no free neuron had a positive scale

    def ticket_forward(self, x: Tensor) -> Tensor:
        """The masked planted networks times ``output_scale``: the target's outputs, computed in float64.

        Args:
            x: ``[B, n_0]`` or ``[N, B, n_0]``, float32 or float64.

        Returns:
            ``[N, B, n_L]`` in the dtype of ``x``.

        Raises:
            TypeError: ``x`` is no floating point tensor.
            ValueError: ``x`` has another shape or is on another device.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"x: expected a floating point tensor, got {getattr(x, 'dtype', type(x).__name__)}")
        output = self.population.to(dtype=torch.float64).forward(x.double(), self.masks)
        return (output * self.output_scale[:, None, :]).to(x.dtype)


def plant(
    ticket: Ticket | Sequence[tuple[Tensor, Tensor]],
    population: Population,
    rule: str = "paper",
    assignment: str = "greedy",
) -> Planted:
    """Plant a ticket in every network of a population, layer by layer from the input.

    A target neuron with non-zero parameters ``theta = (b, w * lambda_old)`` goes to the free neuron whose
    parameters m at the same positions have the least ``q(m) = |theta - lambda(m) m|`` with
    ``lambda(m) = theta.m / |m|^2 > 0``; there they become ``theta / lambda``. In the next layer lambda_old is
    lambda. Where no free neuron has a positive lambda, the one with the largest ``|m|`` carries the target at
    ``lambda = |theta| / |m|``. Output neuron i is neuron i. All other parameters stay as they are.

    Args:
        ticket: a Ticket, or (weight ``[n_l, n_{l-1}]``, bias ``[n_l]``) pairs of tensors or arrays.
        population: the mother networks, of the ticket's depth and at least as wide.
        rule: "paper" is the only one.
        assignment: "greedy" serves the neurons of a layer in index order, "optimal" minimises their total q.

    Returns:
        The planted population, the masks that leave the ticket, and the scales of its outputs.

    Raises:
        TypeError: an argument of another type.
        ValueError: an unknown rule or assignment, a ticket that does not fit, or an inf or NaN in a mother.

    Source: Fischer & Burkholz 2022, section 2.2 and Algorithm 1.

    >>> from pns_fast import init_population, tasks
    >>> planted = plant(tasks.get("circle").ticket(5), init_population((2, 100, 100, 100, 4), n=3))
    >>> sum(w[0].sum() for w in planted.masks.weights)
    tensor(108)
    """
    ticket = as_ticket(ticket)
    if not isinstance(population, Population):
        raise TypeError(f"population: expected a Population, got {type(population).__name__}")
    if rule not in RULES:
        raise ValueError(f"rule: expected one of {', '.join(RULES)}, got {rule!r}")
    if assignment not in ASSIGNMENTS:
        raise ValueError(f"assignment: expected one of {', '.join(ASSIGNMENTS)}, got {assignment!r}")
    ticket.check_fits(population.widths)
    if not all(bool(p.isfinite().all()) for p in (*population.weights, *population.biases)):
        raise ValueError("population: expected finite weights and biases, got an inf or NaN")
    return _plant(ticket, population, ASSIGNMENTS[assignment])


def _plant(ticket: Ticket, mother: Population, match_hidden) -> Planted:
    n, device = mother.n, mother.device
    weights, biases = (
        [w.detach().clone() for w in mother.weights],
        [b.detach().clone() for b in mother.biases],
    )
    kept_weights = [torch.zeros_like(w, dtype=torch.bool) for w in weights]
    kept_biases = [torch.zeros_like(b, dtype=torch.bool) for b in biases]
    previous = torch.arange(ticket.widths[0], device=device).repeat(n, 1)  # [N, I]: where the inputs are
    lambda_old = torch.ones(previous.shape, dtype=torch.float64, device=device)
    neurons, fallbacks = [], torch.zeros(n, dtype=torch.int64, device=device)
    for l, (w, b) in enumerate(zip(ticket.weights, ticket.biases, strict=True)):
        w, b = w.to(device), b.to(device)
        # A target neuron without parameters is a constant 0: what it feeds need not be planted.
        w = w * (previous[0] >= 0)
        theta = torch.cat([w * lambda_old[:, None, :], b[:, None].expand(n, -1, 1)], dim=2)
        support = torch.cat([w, b[:, None]], dim=1) != 0
        match = match_outputs if l == len(ticket.weights) - 1 else match_hidden
        found = match(theta, support, candidates(weights[l], biases[l], previous))
        _write(theta / found.scale[..., None], support, found.index, previous, weights[l], biases[l])
        _write(support.expand_as(theta), support, found.index, previous, kept_weights[l], kept_biases[l])
        previous, lambda_old = found.index, found.scale
        neurons.append(found.index)
        fallbacks += found.fallbacks
    return Planted(Population(weights, biases), Masks(kept_weights, kept_biases), lambda_old, neurons, fallbacks)


def candidates(weights: Tensor, biases: Tensor, previous: Tensor) -> Tensor:
    """Every neuron's parameters at the matched inputs, the bias last: float64 [N, C, I + 1]."""
    columns = previous.clamp(min=0)[:, None, :].expand(-1, weights.shape[1], -1)
    return torch.cat([weights.gather(2, columns), biases[..., None]], dim=2).double()


def _write(values: Tensor, support: Tensor, index: Tensor, previous: Tensor, weights: Tensor, biases: Tensor) -> None:
    """Puts values [N, T, I + 1] on the support [T, I + 1] into the parameters of the matched neurons."""
    network = torch.arange(len(index), device=index.device)[:, None]
    t, i = support[:, :-1].nonzero(as_tuple=True)
    weights[network, index[:, t], previous[:, i]] = values[:, t, i].to(weights.dtype)
    t = support[:, -1].nonzero().flatten()
    biases[network, index[:, t]] = values[:, t, -1].to(biases.dtype)
