"""Tickets whose parameters are moved by at most eps_l, and how far that moves the output."""

import torch

N_RANDOM = 4  # sign patterns drawn at random


def forward(layers, x):
    for w, b in layers[:-1]:
        x = torch.relu(x @ w.T + b)
    w, b = layers[-1]
    return x @ w.T + b


def inputs(n_inputs, generator, n=300):
    """Uniform in [-1, 1]^n_inputs, and corners."""
    x = 2 * torch.rand(n, n_inputs, generator=generator, dtype=torch.float64) - 1
    return torch.cat([x, torch.sign(x[: n // 3])])


def sign_patterns(ticket, x, generator):
    """A sign for every parameter: all plus, all minus, random, and what moves an output most at some input."""
    layers = list(zip(ticket.weights, ticket.biases, strict=True))
    shapes = [p for layer in layers for p in layer]
    yield [torch.ones_like(p) for p in shapes]
    yield [-torch.ones_like(p) for p in shapes]
    for _ in range(N_RANDOM):
        yield [torch.randint(0, 2, p.shape, generator=generator).double() * 2 - 1 for p in shapes]
    yield [
        2 * torch.rand(p.shape, generator=generator, dtype=torch.float64) - 1 for p in shapes
    ]  # not the most allowed
    leaves = [p.clone().requires_grad_() for p in shapes]
    outputs = forward(list(zip(leaves[::2], leaves[1::2], strict=True)), x[::100])
    for output in outputs.flatten():
        gradients = torch.autograd.grad(output, leaves, retain_graph=True)
        # at a dead neuron the gradient says nothing: there it is moved upwards
        yield [torch.where(g < 0, -1.0, 1.0).double() for g in gradients]
        yield [-torch.where(g < 0, -1.0, 1.0).double() for g in gradients]


def largest_move(ticket, errors, seed=0):
    """``max |f - f_eps|`` over sign patterns and inputs; zeros of the ticket stay zeros."""
    generator = torch.Generator().manual_seed(seed)
    x = inputs(ticket.widths[0], generator)
    expected, largest = ticket.forward(x), 0.0
    for signs in sign_patterns(ticket, x, generator):
        moved = [
            (w + e * s * (w != 0), b + e * t * (b != 0))
            for w, b, e, s, t in zip(ticket.weights, ticket.biases, errors, signs[::2], signs[1::2], strict=True)
        ]
        largest = max(largest, float((forward(moved, x) - expected).abs().max()))
    return largest
