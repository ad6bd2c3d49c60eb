// Philox4x32-10 over vectors. Each of its words sits in the lower half of a 64-bit lane and the upper half is left as it
// comes: the product of lower halves is one instruction, its lower half is a next word as it stands and its upper half
// another after one shift. 6 instructions a round for W / 2 counters, about one cycle for a word of 32 bits.
#pragma once

#include "core/vec.h"
#include "kernels/best_match/best_match.h"
#include "kernels/existence_search/existence_search.h"
#include "kernels/existence_search/normal.h"

namespace pns {
namespace {

template <int W>
struct Wide {  // W / 2 lanes of 64 bits, as large as Vec<float, W>
  typedef uint64_t Lanes __attribute__((vector_size(W * 4)));
  static Lanes broadcast(uint64_t x) { return x - Lanes{}; }
  static Lanes multiply_lower_halves(Lanes a, Lanes b) {
#if defined(__AVX512F__)
    if constexpr (W == 16) return (Lanes)_mm512_maskz_mul_epu32(0xFF, (__m512i)a, (__m512i)b);
#endif
#if defined(__AVX2__)
    if constexpr (W == 8) return (Lanes)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#endif
    return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
  }
};

template <int W>
struct WideCounter {
  typename Wide<W>::Lanes word[4];
};

template <int W>
[[gnu::always_inline]] inline void philox_round(WideCounter<W>* c, uint32_t key0, uint32_t key1) {
  using Lanes = Wide<W>;
  const auto p0 = Lanes::multiply_lower_halves(c->word[0], Lanes::broadcast(0xD2511F53u));
  const auto p1 = Lanes::multiply_lower_halves(c->word[2], Lanes::broadcast(0xCD9E8D57u));
  c->word[0] = (p1 >> 32) ^ c->word[1] ^ Lanes::broadcast(key0);
  c->word[1] = p1;
  c->word[2] = (p0 >> 32) ^ c->word[3] ^ Lanes::broadcast(key1);
  c->word[3] = p0;
}

// The lower halves of a's lanes, then of b's.
template <int W, int... J>
typename Vec<float, W>::IntLanes lower_halves(typename Wide<W>::Lanes a, typename Wide<W>::Lanes b,
                                              std::integer_sequence<int, J...>) {
  using Ints = typename Vec<float, W>::IntLanes;
  return __builtin_shufflevector((Ints)a, (Ints)b, (2 * J)...);
}

template <int W>
void draw_integers(uint64_t seed, int64_t tile, int64_t n_parameters, float* values) {
  using Vector = Vec<float, W>;
  const uint64_t first_quad = static_cast<uint64_t>(tile) * kQuads;
  for (int64_t i = 0; i < n_parameters; ++i) {
    for (int at = 0; at < kQuads; at += W) {
      WideCounter<W> half[2];
      for (int h = 0; h < 2; ++h) {
        // A tile's numbers differ in their lowest four bits only, so the upper word is common.
        auto quad = Wide<W>::broadcast((first_quad & 0xFFFFFFFFu) + at + h * W / 2);
        for (int j = 0; j < W / 2; ++j) quad[j] += j;
        half[h] = {{quad, Wide<W>::broadcast(first_quad >> 32), Wide<W>::broadcast(static_cast<uint64_t>(i)),
                    Wide<W>::broadcast(kCandidateStream)}};
      }
      uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
      for (int round = 0; round < 10; ++round, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u) {
        for (auto& counter : half) philox_round<W>(&counter, key0, key1);
      }
      for (int w = 0; w < 4; ++w) {
        const auto words = lower_halves<W>(half[0].word[w], half[1].word[w], std::make_integer_sequence<int, W>());
        const Vector m{__builtin_convertvector((words >> 7) | 1, typename Vector::Lanes)};
        m.store(values + i * kCandidateTile + w * kQuads + at);
      }
    }
  }
}

}  // namespace
}  // namespace pns
