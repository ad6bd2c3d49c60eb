// existence_search on CUDA. A lane draws four candidates (the words of one Philox counter a parameter), keeps them in
// shared memory, 16 bytes a parameter, and takes their float32 products with four targets at a time. What may be closer
// than the best so far, or lies at eps, is decided in float64 (exact_match.cuh). No candidate touches device memory.
//
// Bounds change only between launches, which grow 32-fold, so each finds some 32 candidates a target above the bound of
// the one before; the best of them is kept under a lock. It is the least by (distance, number), and counts are integers:
// the result does not depend on scheduling.
#include "kernels/existence_search/existence_search_cuda.h"

#include <algorithm>
#include <cmath>

#include "core/cuda_check.cuh"
#include "kernels/best_match/exact_match.cuh"
#include "kernels/existence_search/random_neurons.cuh"

namespace pns {
namespace {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr int kWarpSize = 32;
constexpr int kGroup = 4;  // targets that share the loads of a candidate
constexpr float kFarFloat = std::numeric_limits<float>::infinity();
constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
constexpr int kSmallThreads = 128;

// Derived; other values have not been tried.
constexpr int64_t kMostBlocks = 132 * 8;
constexpr int64_t kSharedBytes = 48 << 10, kMostSharedBytes = 96 << 10;
constexpr int64_t kCounters = 2048;         // targets whose counts a block gathers before it adds them to the total
constexpr int64_t kFirstLaunch = 1 << 12;   // candidates
constexpr double kWorkOfLaunch = 5e11;      // parameters times (targets + 16): 0.1 s on an H200

struct TargetState {
  double length2;
  double outside, inside;  // cosine^2 below which q > eps, and above which q < eps, for certain
  float floor;             // cosine^2 that a better candidate reaches for certain
  int exponent;
};

struct Best {
  double distance;  // times 2^-exponent; inf: none
  int64_t index;    // kNone: none
  int lock;
  int unused;
};

struct Search {
  Drawing drawing;
  int64_t n_targets, first, end;  // candidates
  double eps;
  const double* theta;       // [T, k], times 2^-exponent
  const float* direction;    // [ceil(T / 4), k, 4], of unit length
  float* threshold;          // [4 ceil(T / 4)]: least cosine^2 that matters
  TargetState* state;        // [T]
  Best* best;                // [T]
  unsigned long long* count;  // [T]: within eps
  float4* tile;              // [warp, k, 32], where it does not fit in shared memory
};

struct Layout {
  int n_threads;  // a block
  bool is_shared;
  int64_t n_counters;
  size_t shared_bytes;
};

__device__ DeviceMatch evaluate_number(const Search& s, int64_t t, int64_t candidate) {
  const double* theta = s.theta + t * s.drawing.n_parameters;
  return evaluate_exactly<1>(
      s.drawing.n_parameters, [&](int k) { return theta[k]; }, [&](int k) { return draw_one(s.drawing, candidate, k); },
      s.state[t].length2, -1, candidate);
}

// A thread a target.
__global__ void __launch_bounds__(kSmallThreads) existence_prepare_kernel(Search s, const double* given, double* theta,
                                                                          float* direction) {
  const int64_t t = int64_t{blockIdx.x} * kSmallThreads + threadIdx.x;
  const int n = s.drawing.n_parameters;
  if (t >= (s.n_targets + kGroup - 1) / kGroup * kGroup) return;
  float* out = direction + t / kGroup * n * kGroup + t % kGroup;
  s.threshold[t] = kFarFloat;
  if (t >= s.n_targets) {
    for (int i = 0; i < n; ++i) out[i * kGroup] = 0;
    return;
  }
  TargetState state{};
  double peak = 0;
  for (int i = 0; i < n; ++i) peak = fmax(peak, fabs(given[t * n + i]));
  frexp(peak, &state.exponent);
  for (int i = 0; i < n; ++i) {
    const double x = ldexp(given[t * n + i], -state.exponent);
    theta[t * n + i] = x;
    state.length2 = __dadd_rn(state.length2, __dmul_rn(x, x));
  }
  const double inverse = 1 / sqrt(state.length2);
  for (int i = 0; i < n; ++i) out[i * kGroup] = static_cast<float>(theta[t * n + i] * inverse);
  state.outside = state.inside = kFar;
  if (s.eps >= 0) {
    // q^2 = |theta|^2 (1 - cos^2); one parameter fits any of its sign.
    const double eps = ldexp(s.eps, -state.exponent);
    const double edge = fmax(0.0, 1 - eps / state.length2 * eps);
    state.outside = edge - rounding_of(n);
    state.inside = (n == 1 ? 0 : edge) + rounding_of(n);
  }
  s.state[t] = state;
  s.best[t] = {kFar, kNone, 0, 0};
  s.count[t] = 0;
}

// Between launches, a thread a target. Later candidates are of higher number: after an exact match none is better.
__global__ void __launch_bounds__(kSmallThreads) existence_bound_kernel(Search s) {
  const int64_t t = int64_t{blockIdx.x} * kSmallThreads + threadIdx.x;
  if (t >= s.n_targets) return;
  const double rounding = rounding_of(s.drawing.n_parameters);
  // Around zero the square of the rounding error is what a cosine^2 is off by.
  double floor = -rounding * rounding;
  if (s.best[t].index != kNone) {
    const DeviceMatch best = evaluate_number(s, t, s.best[t].index);
    floor = best.distance == 0 ? kFar : fmax(floor, best.cosine2 - rounding);
  }
  s.state[t].floor = nextafterf(static_cast<float>(floor), -1.0f);
  if (floor == kFar) s.state[t].floor = kFarFloat;
  const float outside = nextafterf(static_cast<float>(s.state[t].outside), -1.0f);
  s.threshold[t] = s.eps < 0 ? s.state[t].floor : fminf(outside, s.state[t].floor);
}

// One lane of a warp. The distance is only ever lowered, so a look without the lock spares most of the waiting.
__device__ void challenge(Best* best, double distance, int64_t index) {
  volatile Best* held = best;
  if (distance > held->distance) return;
  while (atomicCAS(&best->lock, 0, 1) != 0) {
  }
  __threadfence();
  const double least = held->distance;
  if (distance < least || (distance == least && index < held->index)) {
    held->distance = distance;
    held->index = index;
  }
  __threadfence();
  atomicExch(&best->lock, 0);
}

// float32's cosine^2 with its sign. Computed again for the few, so that the many need no registers for it.
__device__ inline float score_again(const Search& s, int64_t t, const float* candidate) {
  const int n = s.drawing.n_parameters;
  const float* direction = s.direction + t / kGroup * n * kGroup + t % kGroup;
  float dot = 0, norm = 0;
  for (int i = 0; i < n; ++i) {
    const float m = candidate[i * 4 * kWarpSize];
    dot = fmaf(direction[i * kGroup], m, dot);
    norm = fmaf(m, m, norm);
  }
  return dot * fabsf(dot) / norm;
}

// What a warp's candidates are to one target: of this lane's four those in `bits` reach the threshold. All lanes call
// it.
__device__ void consider(const Search& s, int64_t t, int64_t quad, unsigned bits, const float4* tile,
                         uint32_t* counts) {
  const TargetState state = s.state[t];
  const double* theta = s.theta + t * s.drawing.n_parameters;
  const double unit = unit_of(s.drawing.is_normal);
  double least = kFar;
  int64_t index = kNone;
  unsigned n_matches = 0;
#pragma unroll 1
  for (int v = 0; v < 4; ++v) {
    const int64_t c = candidate_of_quad(quad, v);
    if ((bits >> v & 1) == 0 || c < s.first || c >= s.end) continue;
    const float* mine = reinterpret_cast<const float*>(tile) + v;
    const float score = score_again(s, t, mine);
    const bool is_inside = score > state.inside, is_at_edge = !is_inside && score >= state.outside;
    n_matches += is_inside;
    if (!is_at_edge && score < state.floor) continue;
    const DeviceMatch match = evaluate_exactly<1>(
        s.drawing.n_parameters, [&](int k) { return theta[k]; },
        [&](int k) { return mine[k * 4 * kWarpSize] * unit; }, state.length2, -1, c);
    if (match.index < 0) continue;
    n_matches += is_at_edge && ldexp(match.distance, state.exponent) <= s.eps;
    if (score >= state.floor && match.distance < least) {  // c ascends
      least = match.distance;
      index = c;
    }
  }
  for (int step = 1; step < kWarpSize; step *= 2) {
    n_matches += __shfl_xor_sync(kAllLanes, n_matches, step);
    const double distance = __shfl_xor_sync(kAllLanes, least, step);
    const int64_t other = __shfl_xor_sync(kAllLanes, index, step);
    if (distance < least || (distance == least && other < index)) {
      least = distance;
      index = other;
    }
  }
  if (threadIdx.x % kWarpSize != 0) return;
  if (n_matches > 0) {
    if (counts != nullptr) {
      atomicAdd(counts + t, static_cast<uint32_t>(n_matches));
    } else {
      atomicAdd(s.count + t, static_cast<unsigned long long>(n_matches));
    }
  }
  if (index != kNone) challenge(s.best + t, least, index);
}

__device__ inline void add_product(float theta, const float4& m, float4* dot) {
  dot->x = fmaf(theta, m.x, dot->x);
  dot->y = fmaf(theta, m.y, dot->y);
  dot->z = fmaf(theta, m.z, dot->z);
  dot->w = fmaf(theta, m.w, dot->w);
}

// Bit v: candidate v may reach the threshold.
__device__ inline unsigned reaching(const float4& dot, const float4& norm, float threshold) {
  constexpr float kTiny = -3e-30f;
  auto reaches = [&](float d, float n) { return d * fabsf(d) - threshold * n > kTiny; };
  return reaches(dot.x, norm.x) | reaches(dot.y, norm.y) << 1 | reaches(dot.z, norm.z) << 2 |
         reaches(dot.w, norm.w) << 3;
}

// kTargets of one group, against the warp's candidates in `tile` (of this lane; the next parameter is 32 on).
template <int kTargets>
__device__ __forceinline__ void search_group(const Search& s, int64_t first_target, int64_t quad, const float4& norm,
                                             const float4* tile, uint32_t* counts) {
  const int n = s.drawing.n_parameters;
  const float4* direction = reinterpret_cast<const float4*>(s.direction) + first_target / kGroup * n;
  float4 dot[kTargets] = {};
#pragma unroll 4
  for (int i = 0; i < n; ++i) {
    const float4 m = tile[i * kWarpSize], theta = __ldg(direction + i);
    add_product(theta.x, m, &dot[0]);
    if constexpr (kTargets == kGroup) {
      add_product(theta.y, m, &dot[1]);
      add_product(theta.z, m, &dot[2]);
      add_product(theta.w, m, &dot[3]);
    }
  }
  unsigned bits = 0;
#pragma unroll
  for (int g = 0; g < kTargets; ++g) {
    bits |= reaching(dot[g], norm, __ldg(s.threshold + first_target + g)) << 4 * g;
  }
  if (!__any_sync(kAllLanes, bits != 0)) return;
#pragma unroll 1
  for (int g = 0; g < kTargets; ++g, bits >>= 4) {
    if (__any_sync(kAllLanes, (bits & 15) != 0)) consider(s, first_target + g, quad, bits & 15, tile, counts);
  }
}

template <int kTargets, bool kIsNormal, bool kIsShared>
__global__ void __launch_bounds__(256, 3) existence_search_kernel(Search s, int64_t n_counters) {
  PNS_DYNAMIC_SHARED(memory);
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize, n_warps = blockDim.x / kWarpSize;
  const int n = s.drawing.n_parameters;
  uint32_t* counts = n_counters > 0 ? reinterpret_cast<uint32_t*>(memory) : nullptr;
  float4* tile = (kIsShared ? reinterpret_cast<float4*>(memory + n_counters * 4) + int64_t{warp} * n * kWarpSize
                            : s.tile + (int64_t{blockIdx.x} * n_warps + warp) * n * kWarpSize) + lane;
  for (int64_t t = threadIdx.x; t < n_counters; t += blockDim.x) counts[t] = 0;
  __syncthreads();
  const int64_t first_quad = s.first / (4 * kQuadsPerTile) * kQuadsPerTile;
  const int64_t last_quad = (s.end - 1) / (4 * kQuadsPerTile) * kQuadsPerTile + kQuadsPerTile - 1;
  const int64_t stride = int64_t{gridDim.x} * n_warps * kWarpSize;
  for (int64_t from = first_quad + (int64_t{blockIdx.x} * n_warps + warp) * kWarpSize; from <= last_quad;
       from += stride) {
    const int64_t quad = from + lane;
    float4 norm{};
    for (int i = 0; i < n; ++i) {
      const float4 m = draw_quad(s.drawing, kIsNormal, quad, i);
      tile[i * kWarpSize] = m;
      norm = {fmaf(m.x, m.x, norm.x), fmaf(m.y, m.y, norm.y), fmaf(m.z, m.z, norm.z), fmaf(m.w, m.w, norm.w)};
    }
    for (int64_t t = 0; t < s.n_targets; t += kTargets) search_group<kTargets>(s, t, quad, norm, tile, counts);
  }
  __syncthreads();
  for (int64_t t = threadIdx.x; t < n_counters; t += blockDim.x) {
    if (counts[t] > 0) atomicAdd(s.count + t, static_cast<unsigned long long>(counts[t]));
  }
}

struct Results {
  int64_t* index;
  double *scale, *distance, *candidate;
  int64_t* n_matches;
};

__global__ void __launch_bounds__(kSmallThreads) existence_write_kernel(Search s, Results out) {
  const int64_t t = int64_t{blockIdx.x} * kSmallThreads + threadIdx.x;
  if (t >= s.n_targets) return;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const bool is_found = s.best[t].index != kNone;
  DeviceMatch match{nan, 1, -1, -1};
  if (is_found) match = evaluate_number(s, t, s.best[t].index);
  out.index[t] = match.index;
  out.scale[t] = is_found ? ldexp(match.scale, s.state[t].exponent) : 1;
  out.distance[t] = is_found ? ldexp(match.distance, s.state[t].exponent) : nan;
  const int n = s.drawing.n_parameters;
  for (int i = 0; i < n; ++i) out.candidate[t * n + i] = is_found ? draw_one(s.drawing, match.index, i) : nan;
  out.n_matches[t] = static_cast<int64_t>(s.count[t]);
}

// A function of the sizes alone.
Layout make_layout(int64_t n_targets, int64_t n_parameters) {
  Layout layout{256, true, n_targets <= kCounters ? (n_targets + 3) / 4 * 4 : 0, 0};
  auto tile = [&] { return n_parameters * layout.n_threads * int64_t{sizeof(float4)}; };
  while (layout.n_threads > kWarpSize && tile() > kSharedBytes) layout.n_threads /= 2;
  layout.is_shared = tile() + 4 * layout.n_counters <= kMostSharedBytes;
  if (!layout.is_shared) layout.n_threads = 128;
  layout.shared_bytes = 4 * layout.n_counters + (layout.is_shared ? tile() : 0);
  return layout;
}

// Lays the workspace out from `base` on; returns its size in bytes.
size_t lay_out(int64_t n_targets, int64_t n_parameters, void* base, Search* s) {
  size_t at = 0;
  auto take = [&](auto** pointer, int64_t n) {
    *pointer = reinterpret_cast<std::remove_reference_t<decltype(*pointer)>>(static_cast<unsigned char*>(base) + at);
    at += (static_cast<size_t>(n) * sizeof(**pointer) + 255) / 256 * 256;
  };
  const int64_t padded = (n_targets + kGroup - 1) / kGroup * kGroup;
  const Layout layout = make_layout(n_targets, n_parameters);
  take(&s->theta, n_targets * n_parameters);
  take(&s->direction, padded * n_parameters);
  take(&s->threshold, padded);
  take(&s->state, n_targets);
  take(&s->best, n_targets);
  take(&s->count, n_targets);
  take(&s->tile, layout.is_shared ? 0 : kMostBlocks * layout.n_threads * n_parameters);
  return at;
}

using SearchKernel = void (*)(Search, int64_t);

template <bool kIsNormal>
SearchKernel kernel_of(int64_t n_targets, bool is_shared) {
  if (!is_shared) return existence_search_kernel<kGroup, kIsNormal, false>;
  return n_targets == 1 ? existence_search_kernel<1, kIsNormal, true> : existence_search_kernel<kGroup, kIsNormal, true>;
}

void launch_search(const Search& s, const Layout& layout, cudaStream_t stream) {
  const int64_t quads = (s.end - s.first) / 4 + 2 * kQuadsPerTile;
  const int64_t blocks = std::min<int64_t>((quads + layout.n_threads - 1) / layout.n_threads, kMostBlocks);
  const CudaLaunch launch{dim3(static_cast<unsigned>(blocks)), layout.n_threads, stream, layout.shared_bytes};
  const SearchKernel kernel = s.drawing.is_normal ? kernel_of<true>(s.n_targets, layout.is_shared)
                                                  : kernel_of<false>(s.n_targets, layout.is_shared);
  cuda_launch("existence_search", launch, kernel, s, layout.n_counters);
}

}  // namespace

int64_t existence_search_workspace(int64_t n_targets, int64_t n_parameters) {
  Search s;
  return static_cast<int64_t>(lay_out(n_targets, n_parameters, nullptr, &s));
}

bool run_existence_search(const CudaExistenceSearchParams& p) {
  const char* name = "existence_search";
  const CudaDeviceGuard guard(name, p.device);
  Search s{};
  lay_out(p.n_targets, p.n_parameters, p.workspace, &s);
  s.drawing = make_drawing(p.seed, static_cast<int>(p.n_parameters), p.is_normal);
  s.n_targets = p.n_targets;
  s.eps = p.eps;
  const Layout layout = make_layout(p.n_targets, p.n_parameters);
  const dim3 per_target(static_cast<unsigned>((p.n_targets + kGroup - 1 + kSmallThreads - 1) / kSmallThreads));
  const CudaLaunch small{per_target, kSmallThreads, p.stream};
  cuda_launch(name, small, existence_prepare_kernel, s, p.theta, const_cast<double*>(s.theta),
              const_cast<float*>(s.direction));
  const double work = double(p.n_parameters) * (p.n_targets + 16);
  const int64_t most = std::max<int64_t>(kFirstLaunch, static_cast<int64_t>(kWorkOfLaunch / work));
  const int64_t end = p.first + p.n_candidates;
  s.end = p.first;
  for (int64_t size = kFirstLaunch; s.end < end; size = std::min(32 * size, most)) {
    s.first = s.end;
    s.end = std::min(end, s.first + size);
    cuda_launch(name, small, existence_bound_kernel, s);
    launch_search(s, layout, p.stream);
    if (size < most) continue;  // the first few take no time
    cuda_check(name, cudaStreamSynchronize(p.stream));
    if (p.should_stop && s.end < end && p.should_stop(s.end - p.first)) return false;
  }
  cuda_launch(name, small, existence_write_kernel, s, Results{p.index, p.scale, p.distance, p.candidate, p.n_matches});
  cuda_check(name, cudaStreamSynchronize(p.stream));
  return true;
}

}  // namespace pns
