// The targets of one problem on their supports, and the float64 second stage of best_match and existence_search.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace pns {

struct Match {
  int64_t index = -1;
  double scale = 1, distance = std::numeric_limits<double>::infinity();  // both times 2^-exponent of the target
  double cosine2 = -1;

  bool is_better_than(const Match& other) const {
    return distance < other.distance || (distance == other.distance && index < other.index);
  }
};

// One target: positions, values, and the values of unit length in float32 for the filter.
struct Target {
  int64_t n_features;
  const int32_t* feature;
  const double* theta;  // times 2^-exponent: squares neither overflow nor vanish, and nothing is rounded
  const float* direction;
  double length2;  // |theta|^2

  // float32 rounding of a cosine^2 of this many terms, with slack.
  double rounding() const { return 2.5e-7 * (n_features + 4); }
};

// What any thread knows of the cosine^2 that a candidate must reach. Only ever a bound from below, so it does not
// matter who reads it when.
class Floor {
 public:
  // Around zero the square of the rounding error is what a cosine^2 is off by.
  void reset(const Target& target) { value_ = static_cast<float>(-target.rounding() * target.rounding()); }
  float get() const { return value_.load(std::memory_order_relaxed); }
  void raise(double to) {
    const float f = std::nextafter(static_cast<float>(to), -1.0f);
    float old = get();
    while (old < f && !value_.compare_exchange_weak(old, f, std::memory_order_relaxed)) {
    }
  }

 private:
  std::atomic<float> value_{0};
};

class Targets {
 public:
  // False: a target is not finite.
  template <typename U>
  bool read(const U* target, const uint8_t* support, int64_t n_targets, int64_t n_parameters) {
    begin_.assign(1, 0);
    feature_.clear(), theta_.clear(), direction_.clear(), exponent_.clear(), length2_.clear(), support_id_.clear();
    for (int64_t t = 0; t < n_targets; ++t, target += n_parameters, support += n_parameters) {
      int is_finite = 1;
      for (int64_t i = 0; i < n_parameters; ++i) is_finite &= target[i] - target[i] == 0;
      if (!is_finite) return false;
      append_support(support, n_parameters);
      append_values(target);
    }
    find_columns(n_parameters);
    return true;
  }

  int64_t size() const { return static_cast<int64_t>(exponent_.size()); }
  bool is_empty(int64_t t) const { return begin_[t] == begin_[t + 1]; }
  int exponent(int64_t t) const { return exponent_[t]; }
  int32_t support_id(int64_t t) const { return support_id_[t]; }  // equal for neighbours of equal support
  Target operator[](int64_t t) const {
    const int64_t at = begin_[t];
    return {begin_[t + 1] - at, feature_.data() + at, theta_.data() + at, direction_.data() + at, length2_[t]};
  }

  // The parameters that a tile of candidates holds, and for each target the tile's rows of its features.
  int64_t n_columns() const { return static_cast<int64_t>(column_.size()); }
  const std::vector<int32_t>& columns() const { return column_; }
  const int32_t* rows(int64_t t) const { return row_.data() + begin_[t]; }
  int64_t largest_support() const {
    int64_t n = 0;
    for (int64_t t = 0; t < size(); ++t) n = std::max(n, begin_[t + 1] - begin_[t]);
    return n;
  }

 private:
  void append_support(const uint8_t* support, int64_t n_parameters) {
    for (int64_t i = 0; i < n_parameters;) {
      uint64_t eight = 1;
      if (i + 8 <= n_parameters) std::memcpy(&eight, support + i, 8);
      const int64_t end = std::min(i + 8, n_parameters);
      if (eight == 0) i = end;
      for (; i < end; ++i) {
        if (support[i] != 0) feature_.push_back(static_cast<int32_t>(i));
      }
    }
    begin_.push_back(static_cast<int64_t>(feature_.size()));
    const size_t t = begin_.size() - 2;
    const bool is_same = t > 0 && std::equal(feature_.begin() + begin_[t], feature_.end(),
                                             feature_.begin() + begin_[t - 1], feature_.begin() + begin_[t]);
    support_id_.push_back(t == 0 ? 0 : support_id_.back() + !is_same);
  }

  template <typename U>
  void append_values(const U* target) {
    const size_t at = theta_.size();
    double peak = 0, length2 = 0;
    for (size_t k = at; k < feature_.size(); ++k) peak = std::max(peak, std::fabs(double{target[feature_[k]]}));
    int exponent = 0;
    std::frexp(peak, &exponent);
    for (size_t k = at; k < feature_.size(); ++k) {
      theta_.push_back(std::ldexp(double{target[feature_[k]]}, -exponent));
      length2 += theta_.back() * theta_.back();
    }
    const double inverse = length2 > 0 ? 1 / std::sqrt(length2) : 0;
    for (size_t k = at; k < theta_.size(); ++k) direction_.push_back(static_cast<float>(theta_[k] * inverse));
    exponent_.push_back(exponent);
    length2_.push_back(length2);
  }

  // All parameters where most are used: whole blocks are transposed faster than single numbers are gathered.
  void find_columns(int64_t n_parameters) {
    row_of_.assign(n_parameters, -1);
    for (int32_t i : feature_) row_of_[i] = 0;
    const int64_t n_used = std::count(row_of_.begin(), row_of_.end(), 0);
    column_.clear();
    for (int64_t i = 0; i < n_parameters; ++i) {
      if (row_of_[i] < 0 && 3 * n_used < n_parameters) continue;
      row_of_[i] = static_cast<int32_t>(column_.size());
      column_.push_back(static_cast<int32_t>(i));
    }
    row_.resize(feature_.size());
    for (size_t k = 0; k < feature_.size(); ++k) row_[k] = row_of_[feature_[k]];
  }

  std::vector<int64_t> begin_;
  std::vector<int32_t> feature_, row_, support_id_, column_, row_of_;
  std::vector<double> theta_, length2_;
  std::vector<float> direction_;
  std::vector<int> exponent_;
};

// q of one candidate in float64. False: it can never win.
template <typename T>
bool evaluate(const Target& target, const T* m, int64_t index, Match* match) {
  double dot = 0, norm = 0;
  for (int64_t k = 0; k < target.n_features; ++k) {
    const double x = m[target.feature[k]];
    dot += target.theta[k] * x;
    norm += x * x;
  }
  const double scale = dot / norm;
  if (!(dot > 0) || !std::isfinite(scale) || scale == 0) return false;
  double residual = 0;
  for (int64_t k = 0; k < target.n_features; ++k) {
    const double r = target.theta[k] - scale * m[target.feature[k]];
    residual += r * r;
  }
  const double distance = target.n_features == 1 ? 0 : std::sqrt(residual);
  *match = {index, scale, distance, dot * dot / (norm * target.length2)};
  return distance < std::numeric_limits<double>::infinity();
}

}  // namespace pns
