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

template <int W, Optimizer kind>
struct Updater {
  using Vector = Vec<float, W>;
  static constexpr float kRoot = W < 16 ? 1.0f : 1.41421356f;  // makes a factor of the estimate of 16 roots 1
  bool has_decay;
  Vector lr, beta1, one_minus_beta1, one_minus_beta2, weight_decay, scaled_eps, scaled_step;
  Vector tiny, huge, one_and_half, two;

  explicit Updater(const UpdateRule& r)
      : has_decay(r.weight_decay != 0),
        lr(Vector::broadcast(r.lr)),
        beta1(Vector::broadcast(r.beta1)),
        one_minus_beta1(Vector::broadcast(r.one_minus_beta1)),
        one_minus_beta2(Vector::broadcast(r.one_minus_beta2)),
        weight_decay(Vector::broadcast(r.weight_decay)),
        scaled_eps(Vector::broadcast(r.eps / (kRoot * r.inverse_sqrt_correction))),
        scaled_step(Vector::broadcast(r.step_size / (kRoot * r.inverse_sqrt_correction))),
        tiny(Vector::broadcast(kLeastMoment)),
        huge(Vector::broadcast(1.5e38f)),
        one_and_half(Vector::broadcast(1.5f)),
        two(Vector::broadcast(2.0f)) {}

  // p: W parameters; state: their momenta, or W first and W second moments; g: their gradient.
  void apply(float* p, float* state, Vector g) const {
    if constexpr (kind == Optimizer::kGradient) return g.store(p);
    const Vector old = Vector::load(p);
    if (has_decay) g = fma(weight_decay, old, g);
    if constexpr (kind == Optimizer::kSgd) {
      const Vector momentum = fma(beta1, Vector::load(state), g);
      momentum.store(state);
      return (old - lr * momentum).store(p);
    }
    const Vector first = fma(one_minus_beta1, g - Vector::load(state), Vector::load(state));
    const Vector second = fma(one_minus_beta2, fma(g, g, -Vector::load(state + W)), Vector::load(state + W));
    first.store(state);
    second.store(state + W);
    (old - step(first, second)).store(p);
  }

 private:
  // step_size first / (sqrt(v) correction + eps), both sides divided by kRoot correction.
  Vector step(Vector first, Vector second) const {
    const Vector v = second + tiny;
    if constexpr (W < 16) {
      // Of 8 numbers the root and the quotient take 8 cycles, estimates and a Newton step each 9 to 12 (Zen 3).
      return scaled_step * first / (sqrt(v) + scaled_eps);
    } else {
      // Of 16: to about 2 ulp, some 8 instructions. (On a Zen 5 the exact square root would take a cycle less of 6.9; not
      // measured on others.) The step for 1 / sqrt(2v) has the factors 1, which spares an instruction.
      const Vector inverse_root = estimated_inverse_sqrt(v + v), half_root = v * inverse_root;
      // the root is sqrt(v / 2)
      const Vector denominator = fma(half_root, one_and_half - half_root * inverse_root, scaled_eps);
      const Vector estimate = estimated_reciprocal(denominator);
      const Vector inverse = estimate * (two - denominator * estimate);
      // 2v = inf or what came of it (|g| > 1e20): a step of 0, as the division gives; the estimates would make it NaN.
      return scaled_step * first * select(v < huge, inverse, Vector::zero());
    }
  }
};

// The update of values [k, end) from the gradients of the parameters in force, g[0] that of value k. They come in runs,
// with nothing in between: an update is a chain of some 80 cycles, of which the processor then overlaps several. The
// updater is a copy, so that stores cannot change its constants and they stay in registers. Measured on a Zen 5: 6.9
// cycles a vector, 8.6 with constants from memory; 11 to 13 behind the sums that each vector's gradient is made of.
template <int W, typename Updater>
inline void update_run(const Trained& trained, int64_t k, int64_t end, const float* g, Updater updater) {
  const auto [value, state, factor, is_edge_popup] = trained;
  for (; k < end; k += W, g += W) {
    Vec<float, W> gradient = Vec<float, W>::load(g);
    if (factor != nullptr) gradient = trained_gradient(gradient, factor + k, is_edge_popup, value + k);
    updater.apply(value + k, state + 2 * k, gradient);
  }
}

}  // namespace
}  // namespace pns
