#include "kernels/masked_conv2d/conv_plan.h"

#include <algorithm>
#include <limits>
#include <list>
#include <mutex>
#include <numeric>
#include <tuple>

namespace pns {
namespace {

// What a tile's block of source rows may take. Larger blocks lay out fewer rows twice, smaller ones stay nearer. Of 0.4
// to 2.6 MB in five layers of VGG16 (one thread of an EPYC of Zen 5, L2 1 MB): at density 0.01, where the layout is most
// of the time, 2.6 MB was the best or as good; at 0.1 1.3 MB was within 7% of the best.
constexpr double kFewKept = 0.03;
int64_t source_bytes(double density) { return density < kFewKept ? 2600 << 10 : 1300 << 10; }
constexpr int64_t kPixelBytes = 64;
// A run of features is to fill blocks of 16 samples by 16 features; small images are run through together.
constexpr int64_t kRunFeatures = 64;

struct Direction {
  int64_t size, out, kernel, stride, pad, dilation;
};

ConvAxis forward_axis(const Direction& d) { return {d.size, d.out, d.out, d.stride, (d.kernel - 1) * d.dilation, d.pad, 1, 0}; }

// Row p of the padded image is of phase p % stride and line p / stride; lines begin with the first inside of the image.
ConvAxis gradient_axis(const Direction& d) {
  const int64_t first = d.pad / d.stride, reach = (d.kernel - 1) * d.dilation / d.stride;
  const int64_t n_lines = (d.pad + d.size - 1) / d.stride - first + 1;
  return {d.out, d.size, n_lines, 1, reach, reach - first, d.stride, d.pad % d.stride};
}

struct Tap {
  int64_t phase, at;  // which results it is for, and what it reads for line 0
};

Tap tap(const Direction& d, const ConvAxis& axis, bool is_gradient, int64_t k) {
  const int64_t p = k * d.dilation;
  return is_gradient ? Tap{p % d.stride, axis.reach - p / d.stride} : Tap{0, p};
}

// The columns of a tile's row, phase by phase where lines step by more than one.
struct TileRow {
  int64_t step, each;

  explicit TileRow(const ConvAxis& columns)
      : step(columns.step), each((columns.extent(columns.n_lines) + columns.step - 1) / columns.step) {}
  int64_t length() const { return step * each; }
  int64_t place(int64_t column) const { return column % step * each + column / step; }
};

// Several channels of a run that is the whole image follow each other in it.
void repeat_for_channels(int64_t n_channels, int64_t most, ConvRun* run) {
  run->n_channels = std::min(n_channels, std::max<int64_t>(1, most / run->n_features));
  const int64_t n_places = run->place.size();
  for (int64_t c = 1; c < run->n_channels; ++c) {
    for (int64_t k = 0; k < n_places; ++k) run->place.push_back(run->place[k] + static_cast<int32_t>(c * run->plane));
  }
}

// place_of(row, column) for every pixel of the squares in rows [first, last) of squares.
template <typename F>
ConvRun run_of(int64_t first, int64_t last, int64_t width, int64_t window, int64_t plane, F&& place_of) {
  ConvRun run{first * width, (last - first) * width, 1, plane, window * window, {}};
  for (int64_t h = first * window; h < last * window; h += window) {
    for (int64_t w = 0; w < width * window; w += window) {
      for (int64_t p = 0; p < window * window; ++p) {
        run.place.push_back(static_cast<int32_t>(place_of(h + p / window, w + p % window)));
      }
    }
  }
  return run;
}

ConvRun source_run(const ConvAxis& rows, const ConvAxis& columns, const TileRow& row, int64_t line, int64_t n_lines,
                   bool is_whole, int64_t plane, int64_t window) {
  const int64_t origin = line * rows.step - rows.shift, extent = rows.extent(n_lines);
  const int64_t first = is_whole ? 0 : std::clamp<int64_t>(origin, 0, rows.n_source) / window;
  const int64_t last = is_whole ? rows.n_source : std::clamp<int64_t>(origin + extent, first, rows.n_source);
  const int64_t n_squares = rows.n_source / window, end = std::min(n_squares, (last + window - 1) / window);
  return run_of(std::min(first, end), end, columns.n_source / window, window, plane, [&](int64_t h, int64_t w) {
    const int64_t r = h - origin, c = w + columns.shift;
    const bool is_read = r >= 0 && r < extent && c >= 0 && c < columns.extent(columns.n_lines);
    return is_read ? r * row.length() + row.place(c) : plane - 1;  // what no line reads goes there
  });
}

ConvRun result_run(const ConvAxis& rows, const ConvAxis& columns, int64_t line, int64_t n_lines, int64_t window) {
  const int64_t first = std::max<int64_t>(0, line * rows.n_phases - rows.result_shift);
  const int64_t last = std::min(rows.n_result, (line + n_lines) * rows.n_phases - rows.result_shift);
  const int64_t plane = rows.n_phases * columns.n_phases * n_lines * columns.n_lines;
  return run_of(first / window, last / window, columns.n_result / window, window, plane, [&](int64_t h, int64_t w) {
    const int64_t r = h + rows.result_shift, c = w + columns.result_shift;
    const int64_t phase = r % rows.n_phases * columns.n_phases + c % columns.n_phases;
    return (phase * n_lines + r / rows.n_phases - line) * columns.n_lines + c / columns.n_phases;
  });
}

std::vector<int32_t> holes_of(const ConvRun& run, int64_t n_pixels) {
  std::vector<bool> is_filled(run.plane);
  for (int32_t place : run.place) is_filled[place] = true;
  std::vector<int32_t> holes;
  for (int64_t p = 0; p < n_pixels; ++p) {
    if (!is_filled[p]) holes.push_back(static_cast<int32_t>(p));
  }
  return holes;
}

// As many lines a block as `bytes` allow, about the same in each, and whole squares of results.
int64_t lines_each(const ConvAxis& rows, const TileRow& row, int64_t n_source, int64_t bytes, int64_t window) {
  int64_t n = rows.n_lines;
  while (n > 1 && n_source * rows.extent(n) * row.length() * kPixelBytes > bytes) --n;
  const int64_t n_blocks = (rows.n_lines + n - 1) / n;
  const int64_t n_each = (rows.n_lines + n_blocks - 1) / n_blocks;
  return std::min(rows.n_lines, (n_each + window - 1) / window * window);
}

// Row (channel, phase) of the results takes kept weight (o, i, k, l): its channel o forward, i backward.
ConvRows find_rows(const ConvShape& s, const MaskPattern& pattern, bool is_gradient, int64_t n_phases,
                   const std::vector<Tap>& taps, int64_t plane, int64_t lanes) {
  const int64_t n_taps = taps.size(), n_columns = s.n_in * n_taps;
  const uint64_t* bits = pattern.bits.data();
  auto for_entries = [&](auto&& f) {
    for (int64_t o = 0; o < s.n_out; ++o) {
      for_kept(bits, o * n_columns, n_columns, [&](int64_t column) {
        const uint32_t i = static_cast<uint32_t>(column) / static_cast<uint32_t>(n_taps);
        const Tap& t = taps[column - i * n_taps];
        const int64_t channel = is_gradient ? i : o, source = is_gradient ? o : i;
        f(channel * n_phases + t.phase, (source * plane + t.at) * lanes, o * n_columns + column);
      });
    }
  };
  ConvRows rows;
  rows.begin.resize((is_gradient ? s.n_in : s.n_out) * n_phases + 1);
  for_entries([&](int64_t row, int64_t, int64_t) { ++rows.begin[row + 1]; });
  std::partial_sum(rows.begin.begin(), rows.begin.end(), rows.begin.begin());
  rows.offset.resize(rows.begin.back()), rows.weight.resize(rows.begin.back());
  std::vector<uint32_t> next(rows.begin.begin(), rows.begin.end() - 1);
  for_entries([&](int64_t row, int64_t offset, int64_t weight) {
    const uint32_t k = next[row]++;
    rows.offset[k] = static_cast<int32_t>(offset), rows.weight[k] = static_cast<uint32_t>(weight);
  });
  return rows;
}

ConvPlan make_plan(const ConvShape& s, const MaskPattern& pattern, bool is_gradient, int64_t lanes) {
  const Direction down{s.height, s.out_height(), s.kernel_h, s.stride_h, s.pad_h, s.dilation_h};
  const Direction across{s.width, s.out_width(), s.kernel_w, s.stride_w, s.pad_w, s.dilation_w};
  const ConvAxis rows = is_gradient ? gradient_axis(down) : forward_axis(down);
  const ConvAxis columns = is_gradient ? gradient_axis(across) : forward_axis(across);
  const TileRow row(columns);
  ConvPlan plan{};
  plan.n_source = is_gradient ? s.n_out : s.n_in, plan.n_result = is_gradient ? s.n_in : s.n_out;
  const int64_t of_source = is_gradient ? s.window : 1, of_result = is_gradient ? 1 : s.window;
  plan.source_features = (rows.n_source / of_source) * (columns.n_source / of_source);
  plan.result_features = (rows.n_result / of_result) * (columns.n_result / of_result);
  plan.n_phases = rows.n_phases * columns.n_phases;
  plan.n_pixels = columns.n_lines, plan.x_step = rows.step * row.length();
  const double density = double(pattern.networks[0].n_entries) / s.n_weights();
  const int64_t n_each = lines_each(rows, row, plan.n_source, source_bytes(density), of_result);
  plan.plane = rows.extent(n_each) * row.length() + 1;
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (std::max(plan.n_source * plan.plane, plan.n_phases * n_each * plan.n_pixels) * lanes > kMost || s.n_weights() > kMost) {
    return plan;
  }
  for (int64_t line = 0; line < rows.n_lines; line += n_each) {
    ConvBlock block;
    block.n_lines = std::min(n_each, rows.n_lines - line);
    const bool is_whole = block.n_lines == rows.n_lines;
    block.source = source_run(rows, columns, row, line, block.n_lines, is_whole, plan.plane, of_source);
    block.result = result_run(rows, columns, line, block.n_lines, of_result);
    block.holes = holes_of(block.source, plan.plane - 1);
    block.result_holes = holes_of(block.result, is_gradient ? 0 : block.result.plane);  // its results are only written
    if (is_whole) {
      repeat_for_channels(plan.n_source, kRunFeatures, &block.source);
      repeat_for_channels(plan.n_result, kRunFeatures, &block.result);
    }
    plan.blocks.push_back(std::move(block));
  }
  std::vector<Tap> taps;
  for (int64_t k = 0; k < s.kernel_h; ++k) {
    for (int64_t l = 0; l < s.kernel_w; ++l) {
      const Tap vertical = tap(down, rows, is_gradient, k), horizontal = tap(across, columns, is_gradient, l);
      taps.push_back({vertical.phase * columns.n_phases + horizontal.phase,
                      vertical.at * row.length() + (is_gradient ? horizontal.at : row.place(horizontal.at))});
    }
  }
  plan.rows = find_rows(s, pattern, is_gradient, plan.n_phases, taps, plan.plane, lanes);
  return plan;
}

bool is_same_layer(const ConvShape& a, const ConvShape& b) {
  auto key = [](const ConvShape& s) {
    return std::tie(s.n_in, s.height, s.width, s.n_out, s.kernel_h, s.kernel_w, s.stride_h, s.stride_w, s.pad_h, s.pad_w,
                    s.dilation_h, s.dilation_w, s.window);
  };
  return key(a) == key(b);
}

struct Kept {
  std::weak_ptr<const MaskPattern> pattern;
  ConvShape shape;
  bool is_gradient;
  int64_t lanes;
  std::shared_ptr<const ConvPlan> plan;
};

// The latest first; what was not asked for longest goes when there is too much.
constexpr size_t kMostBytes = size_t{1} << 28, kMostPlans = 256;
std::mutex kept_mutex;
std::list<Kept> kept;

void keep(Kept plan) {
  std::lock_guard<std::mutex> lock(kept_mutex);
  kept.remove_if([](const Kept& old) { return old.pattern.expired(); });
  kept.push_front(std::move(plan));
  size_t bytes = 0;
  for (const Kept& one : kept) bytes += one.plan->bytes();
  for (; bytes > kMostBytes || kept.size() > kMostPlans; kept.pop_back()) bytes -= kept.back().plan->bytes();
}

}  // namespace

size_t ConvPlan::bytes() const {
  size_t n = sizeof(*this) + (rows.begin.size() + rows.offset.size() + rows.weight.size()) * sizeof(int32_t);
  for (const ConvBlock& b : blocks) {
    n += sizeof(b) + (b.source.place.size() + b.result.place.size()) * sizeof(int32_t);
    n += (b.holes.size() + b.result_holes.size()) * sizeof(int32_t);
  }
  return n;
}

std::shared_ptr<const ConvPlan> conv_plan(const ConvShape& shape, const std::shared_ptr<const MaskPattern>& pattern,
                                          bool is_gradient, int64_t lanes) {
  {
    std::lock_guard<std::mutex> lock(kept_mutex);
    for (auto at = kept.begin(); at != kept.end(); ++at) {
      if (at->is_gradient == is_gradient && at->lanes == lanes && is_same_layer(at->shape, shape) &&
          at->pattern.lock() == pattern) {
        kept.splice(kept.begin(), kept, at);
        return at->plan;
      }
    }
  }
  auto plan = std::make_shared<const ConvPlan>(make_plan(shape, *pattern, is_gradient, lanes));
  keep({pattern, shape, is_gradient, lanes, plan});
  return plan;
}

}  // namespace pns
