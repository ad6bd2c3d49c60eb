// The optimiser on one vector of parameters: torch.optim.SGD (momentum, no dampening) and torch.optim.Adam.
#pragma once

#include "core/vec.h"
#include "kernels/mlp_trainer/network.h"

namespace pns {
namespace {

// The gradient of the trained value from that of the weight in force: masked, or straight through to |score| * sign.
// sign(0) = 1: biases' scores start at 0 and would never move.
template <typename Vector>
inline Vector trained_gradient(Vector g, const float* factor, bool is_edge_popup, const float* score) {
  g = g * Vector::load(factor);
  return is_edge_popup ? select(Vector::load(score) < Vector::zero(), Vector::zero() - g, g) : g;
}

template <int W>
struct Updater {
  using Vector = Vec<float, W>;
  Optimizer kind;
  Vector lr, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, weight_decay, step_size, inverse_sqrt_correction;

  explicit Updater(const UpdateRule& r)
      : kind(r.kind),
        lr(Vector::broadcast(r.lr)),
        beta1(Vector::broadcast(r.beta1)),
        one_minus_beta1(Vector::broadcast(r.one_minus_beta1)),
        beta2(Vector::broadcast(r.beta2)),
        one_minus_beta2(Vector::broadcast(r.one_minus_beta2)),
        eps(Vector::broadcast(r.eps)),
        weight_decay(Vector::broadcast(r.weight_decay)),
        step_size(Vector::broadcast(r.step_size)),
        inverse_sqrt_correction(Vector::broadcast(r.inverse_sqrt_correction)) {}

  // p: the parameters; state0: momentum or first moment; state1: second moment; g: their gradient.
  void apply(float* p, float* state0, float* state1, Vector g) const {
    if (kind == Optimizer::kGradient) return g.store(p);
    const Vector old = Vector::load(p);
    g = fma(weight_decay, old, g);
    if (kind == Optimizer::kSgd) {
      const Vector momentum = fma(beta1, Vector::load(state0), g);
      momentum.store(state0);
      return (old - lr * momentum).store(p);
    }
    const Vector first = Vector::load(state0) + one_minus_beta1 * (g - Vector::load(state0));
    const Vector second = fma(one_minus_beta2 * g, g, beta2 * Vector::load(state1));
    first.store(state0);
    second.store(state1);
    // sqrt(v) = v / sqrt(v); the floor keeps v = 0 out of 0 * inf (such a parameter has first = 0 or a vanishing v)
    const Vector floored = max(second, Vector::broadcast(1e-36f));
    const Vector root = floored * inverse_sqrt(floored);
    // v = inf (|g| > 5e20) divides to a step of 0, as in torch; the estimates would make it NaN.
    const Vector inverse = reciprocal(fma(root, inverse_sqrt_correction, eps));
    (old - step_size * first * select(second > Vector::broadcast(3e38f), Vector::zero(), inverse)).store(p);
  }
};

}  // namespace
}  // namespace pns
