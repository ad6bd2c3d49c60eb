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
    # best_match: float64 on both sides, sums of up to 3,000 products in the same order; the distance, relative to
    # the target, is a difference that cancels where a candidate is nearly parallel
    "match_float64": (1e-11, 1e-14),
    # gradients in float32 against float32, relative to the largest: sums over up to 130 samples of sums, which cancel
    "float32_gradient": (2e-5, 1e-6),
    # masked_linear in half precision on CUDA against float64, relative to the largest: summed in float32, one rounding
    # of the result (5e-4, 4e-3), and in split sums of cuBLAS one of each part
    "float16": (2e-3, 1e-4),
    "bfloat16": (1.6e-2, 1e-3),
    # mlp_gradients in float32 against float64, relative to the layer's largest: sums over at most 100 samples and
    # 100 inputs, each rounded to 6e-8
    "gradient_of_one_step": (1e-5, 0.0),
    # mlp_trainer in float32 against float64, absolute. Rounding of 6e-8 a step, carried along by momentum: 3e-6 is
    # seen, 1e-4 was asked for
    "parameters_100_sgd_steps": (0.0, 2e-5),
    # a step of Adam is lr * m / sqrt(v), which is all rounding where gradients vanish: 1e-6 is seen, 1e-3 was asked for
    "parameters_20_adam_steps": (0.0, 2e-5),
    # one step: the gradient, two rounded coefficients (1 - beta), a square root and a division
    "one_adam_step": (1e-5, 0.0),
    # what those parameters do to the loss; test loss included
    "loss_curve": (1e-4, 1e-4),
    # late single weights prove nothing (1e-2 apart where gradients vanish), the curve does: 2e-4 is seen
    "loss_curve_200_adam_steps": (1e-3, 1e-3),
    # edge-popup's scores after 20 steps of SGD: as parameters, as long as no mask entry swaps
    "edge_popup_scores": (0.0, 1e-5),
}
