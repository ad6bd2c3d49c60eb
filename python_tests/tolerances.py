"""Every tolerance of the tests, (rtol, atol), with its reason. What is not here is compared bitwise."""

TOLERANCES: dict[str, tuple[float, float]] = {
    # relative to the largest |target output|: planted parameters are stored in float32, and a ticket that
    # cancels large terms (Helix: slopes up to 90 sum to outputs below 1) loses a digit or two
    "planted_output": (1e-4, 0.0),
    # float64 on both sides, only the order of the operations differs
    "float64": (1e-12, 1e-14),
    # float32 against float32, sums of up to 100 terms in another order
    "float32_forward": (1e-5, 1e-6),
    # float64 on both sides; a scale is a quotient of sums, carried through up to eight layers
    "planted_scale": (1e-9, 0.0),
    # one rounding of a float64 to float32: half a unit in the last place is 6e-8
    "float32_rounding": (1e-7, 0.0),
    # float64: slopes up to 90 whose sum of up to 30 terms cancels to values near 1
    "knots": (1e-10, 1e-10),
    # variance of n normal or uniform numbers: five standard deviations at the n = 20,000 of the test
    "sample_variance": (0.05, 0.0),
    # scores relative to the largest of a network, float64 on both sides: first and second derivatives by two
    # routes of autograd
    "scores_float64": (1e-9, 1e-12),
    # the same in float32 against float64: GraSP's second derivatives cancel more than a forward pass
    "scores_float32": (1e-4, 1e-5),
    # parameters and losses after 16 steps of SGD or Adam in float32 against a torch.optim loop: rounding
    # grows a little with every step, and Adam divides it by small second moments
    "train_16_steps": (1e-3, 1e-4),
}
