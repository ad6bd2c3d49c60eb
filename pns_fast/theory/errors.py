"""Lemma 1: how far the parameters of a layer may be off if the network's output may be off by eps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops._library import check_positive
from ..tasks import Ticket
from ..tasks.ticket import as_ticket
from .activations import largest_inputs

NORMS = ("max", "spectral")


@dataclass(frozen=True)
class LayerTerms:
    """What the lemma and the theorem know of a layer.

    Attributes:
        theta: float64 ``[n_l, n_{l-1} + 1]``, the target's parameters, the bias last.
        n_parameters: ``k_i`` of each neuron: its non-zero weights, and one for a bias that is not zero.
        largest_input: ``sup |x^(l-1)|_1`` over inputs in [-1, 1]^n_0, see :mod:`pns_fast.theory.activations`.
        weight_norm: ``|W^(l)|``.
        log_error: the natural logarithm of ``eps_l``, which may be smaller than any float.
    """

    theta: Tensor
    n_parameters: tuple[int, ...]
    largest_input: float
    weight_norm: float
    log_error: float

    @property
    def error(self) -> float:
        """``eps_l``."""
        return math.exp(min(self.log_error, 709.0))

    @property
    def largest_parameter(self) -> float:
        """The largest ``|theta_i|`` of the layer."""
        return float(self.theta.abs().max())

    @property
    def assumption_holds(self) -> bool:
        """Whether Theorem 2's assumption ``|theta_i| <= 1 - eps_l`` does."""
        return self.largest_parameter <= 1 - self.error


def layer_terms(ticket: Ticket | Sequence[tuple[Tensor, Tensor]], eps: float, *, norm: str = "max") -> list[LayerTerms]:
    """The terms of Lemma 1, a layer each; see :func:`layer_errors`.

    Args:
        ticket: a Ticket, or (weight ``[n_l, n_{l-1}]``, bias ``[n_l]``) pairs.
        eps: how far the output may be off.
        norm: "max" or "spectral".

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Lemma 1 of Fischer & Burkholz 2022.

    >>> from pns_fast import tasks
    >>> terms = layer_terms(tasks.get("helix").ticket(3), eps=0.1)
    >>> terms[1].n_parameters, round(terms[1].largest_input, 6)
    ((31, 31, 2), 15.517241)
    """
    ticket, eps = as_ticket(ticket), check_positive("eps", eps)
    if norm not in NORMS:
        raise ValueError(f"norm: expected one of {', '.join(NORMS)}, got {norm!r}")
    n_layers, inputs = len(ticket.weights), largest_inputs(ticket)
    norms = [_norm(w, norm) for w in ticket.weights]
    terms, log_later = [], 0.0  # the logarithm of the product over the later layers
    for l in reversed(range(n_layers)):
        theta = torch.cat([ticket.weights[l], ticket.biases[l][:, None]], dim=1).cpu()
        k = theta.count_nonzero(1).tolist()
        most_parameters = len(k) * max(*k, 1)
        log_error = math.log(eps) - math.log(n_layers) - math.log(most_parameters) / 2
        # |W + dW| <= |W| + eps / L, as the proof needs it, asks for sqrt(n_l k_max_l) eps_l <= eps / L beside
        factor = math.log1p(inputs[l]) + log_later
        log_error -= factor if norm == "max" else max(factor, 0.0)
        terms.append(LayerTerms(theta, tuple(k), inputs[l], norms[l], log_error))
        log_later += math.log(norms[l] + eps / n_layers)
    return terms[::-1]


def layer_errors(ticket: Ticket | Sequence[tuple[Tensor, Tensor]], eps: float, *, norm: str = "max") -> list[float]:
    """How far every parameter of a layer may be off for an output that is off by at most eps.

    ``eps_l = eps / (L sqrt(n_l k_max_l) (1 + sup |x^(l-1)|_1) prod_{k>l} (|W^(k)| + eps / L))``, where ``k_max_l`` is
    the largest number of parameters of a neuron, a non-zero bias included. Parameters that are zero in the ticket are
    not part of it and stay zero.

    With "max" ``|W|`` is the largest entry, as the paper prints it. Then the lemma does not hold for every ticket: n
    neurons that are added up add up their errors, and ``|W x|_2`` may be sqrt(n) times ``|W|_max |x|_2``. With
    "spectral" ``|W|`` is the largest singular value and eps_l at most ``eps / (L sqrt(n_l k_max_l))``, which the proof
    takes for granted: then it does.

    Args:
        ticket: a Ticket, or (weight ``[n_l, n_{l-1}]``, bias ``[n_l]``) pairs.
        eps: how far the output may be off, for all inputs in [-1, 1]^n_0.
        norm: "max" or "spectral".

    Returns:
        ``eps_1, ..., eps_L``.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Lemma 1 of Fischer & Burkholz 2022 with its proof, appendix A.1. The index inside the product is k and the
    activation that of layer l - 1 (main text and appendix differ by misprints).

    >>> from pns_fast import tasks
    >>> [round(e, 6) for e in layer_errors(tasks.get("relu").ticket(4), eps=0.3)]
    [0.041322, 0.045455, 0.05]
    """
    return [terms.error for terms in layer_terms(ticket, eps, norm=norm)]


def assumption_holds(ticket: Ticket | Sequence[tuple[Tensor, Tensor]], eps: float, *, norm: str = "max") -> list[bool]:
    """In which layers Theorem 2's assumption holds: ``|theta_i| <= 1 - eps_l`` for all parameters.

    Random parameters lie in [-1, 1] (in units of their initialisation). A parameter at 1 is matched with probability
    ``eps_l / 2`` instead of ``eps_l``, one beyond ``1 + eps_l`` never.

    Args:
        ticket: a Ticket, or (weight ``[n_l, n_{l-1}]``, bias ``[n_l]``) pairs.
        eps: how far the output may be off.
        norm: "max" or "spectral", as in :func:`layer_errors`.

    Returns:
        One bool a layer.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: the proof of Theorem 2 in Fischer & Burkholz 2022, appendix A.2.

    >>> assumption_holds([([[0.5]], [0.0]), ([[1.0]], [0.0])], eps=0.1)
    [True, False]
    """
    return [terms.assumption_holds for terms in layer_terms(ticket, eps, norm=norm)]


def _norm(weight: Tensor, norm: str) -> float:
    return float(weight.abs().max() if norm == "max" else torch.linalg.matrix_norm(weight, 2))
