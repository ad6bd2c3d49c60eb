// Register-blocked products, R rows x V vectors of accumulators, so that each loaded vector feeds R FMAs and each
// broadcast weight V. 16 or 24 accumulators of 32 registers (AVX-512), 12 of 16 (AVX2): enough chains to hide 4 cycles of
// FMA latency at two a cycle.
#pragma once

#include <cstdint>

#include "core/vec.h"

namespace pns {
namespace {

// Steps through R rows in parallel with one pointer for every three: base, base + step and base + 2 step are addresses
// an x86 instruction forms itself, where one pointer a row would not fit into the registers.
template <int R, typename T>
struct RowCursor {
  const T* base[(R + 2) / 3];
  int64_t row_step;

  RowCursor(const T* first, int64_t step) : row_step(step) {
    for (int g = 0; g < (R + 2) / 3; ++g) base[g] = first + 3 * g * step;
  }
  T operator[](int r) const { return base[r / 3][r % 3 * row_step]; }
  void advance(int64_t n) {
    for (const T*& pointer : base) pointer += n;
  }
};

// Element (row, k) of n_k columns lies at row * row_step + k * k_step.
template <typename T>
struct DenseMatrix {
  const T* at;
  int64_t row_step, k_step, n_k;
};

// Every loop over the sums is unrolled: GCC keeps an array in memory if one is not, and stores and loads it around the
// loop over k (3% of the trainer's dense step).
//
// acc[r][v] = sum_k A[row + r][k] * x[k * stride + v], k ascending, A the parts side by side.
template <int W, int V, int R, typename T, typename Finish, typename... Parts>
inline void dense_block(int64_t row, const T* x, int64_t stride, Finish&& finish, const Parts&... parts) {
  using Vector = Vec<T, W>;
  Vector acc[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) acc[r][v] = Vector::zero();
  }
  const auto add = [&](const DenseMatrix<T>& a) __attribute__((always_inline)) {
    RowCursor<R, T> cursor(a.at + row * a.row_step, a.row_step);
#pragma GCC unroll 2
    for (int64_t k = 0; k < a.n_k; ++k, x += stride, cursor.advance(a.k_step)) {
      Vector column[V];
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) column[v] = Vector::load(x + v * W);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const Vector w = Vector::broadcast(cursor[r]);
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) acc[r][v] = fma(w, column[v], acc[r][v]);
      }
    }
  };
  (add(parts), ...);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) finish(row + r, acc[r]);
}

// finish(row, acc[V]) for rows [row, end) of A x, A the parts side by side.
template <int W, int V, typename T, typename Finish, typename... Parts>
inline void dense_product(int64_t row, int64_t end, const T* x, int64_t stride, Finish&& finish, const Parts&... parts) {
  // Two vectors wide 8 rows, which lie in one line of the cache where the matrix is transposed, are 2% faster than 12 at
  // 100 x 100; four wide 6 rows are 5% faster than 4 at 1,024 x 1,024.
  constexpr int R = (W * sizeof(T) < 64 ? 12 : V < 4 ? 16 : 24) / (V < 2 ? 2 : V);
  for (; row + R <= end; row += R) dense_block<W, V, R>(row, x, stride, finish, parts...);
  for (; row + 4 <= end; row += 4) dense_block<W, V, 4>(row, x, stride, finish, parts...);
  for (; row < end; ++row) dense_block<W, V, 1>(row, x, stride, finish, parts...);
}

}  // namespace
}  // namespace pns
