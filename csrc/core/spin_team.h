// A few threads that share out one small job after another, tens of thousands a second: they wait awake, so that a job
// costs below a microsecond to start, where a new thread costs 15 to 30.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

#ifdef PNS_X86
#include <xmmintrin.h>
#endif

#include "core/flush_denormals.h"

namespace pns {

// Which part of a job is whose: items member, member + size, member + 2 size ..., or a range of neighbours.
struct Share {
  int member = 0, size = 1;
  int64_t begin(int64_t n) const { return n * member / size; }
  int64_t end(int64_t n) const { return n * (member + 1) / size; }
};

class SpinTeam {
 public:
  explicit SpinTeam(int size) {
    try {
      for (int m = 1; m < size; ++m) threads_.emplace_back([this, m] { work(m); });
    } catch (const std::system_error&) {
      // No thread left: those that started do the work. Nothing depends on how many there are.
    }
    size_ = static_cast<int>(threads_.size()) + 1;
    size_is_known_.store(true, std::memory_order_release);
  }
  ~SpinTeam() {
    is_over_ = true;
    start();
    for (auto& thread : threads_) thread.join();
  }
  SpinTeam(const SpinTeam&) = delete;
  SpinTeam& operator=(const SpinTeam&) = delete;
  int size() const { return size_; }

  // f(Share) once by every member, the calling thread among them; back when all have finished. f does not throw.
  template <typename F>
  void run(bool together, const F& f) {
    if (!together || size_ == 1 || n_alone_ > 0) {
      n_alone_ -= n_alone_ > 0;
      return f(Share{0, 1});
    }
    call_ = [](const void* job, Share share) { (*static_cast<const F*>(job))(share); };
    job_ = &f;
    n_working_.store(size_ - 1, std::memory_order_relaxed);
    start();
    f(Share{0, size_});
    count(wait([this] { return n_working_.load(std::memory_order_acquire) == 0; }));
  }

 private:
  static constexpr int64_t kFirstPause = 2000;
  static constexpr int kPatience = 16;

  // A member that keeps us waiting again and again has no core of its own: alone is faster, for a while, then for longer.
  void count(bool was_late) {
    if (was_late) {
      if (--patience_ > 0) return;
      n_alone_ = pause_;
      pause_ = std::min<int64_t>(2 * pause_, 1 << 20);
      patience_ = kPatience / 4;
    } else if (++n_in_time_ % 256 == 0) {
      patience_ = std::min(patience_ + 1, kPatience);
      pause_ = std::max(kFirstPause, pause_ / 2);
    }
  }

  void start() { n_started_.fetch_add(1, std::memory_order_release); }

  void work(int member) {
    const FlushDenormals flush;
    wait([this] { return size_is_known_.load(std::memory_order_acquire); });
    for (uint64_t seen = 0;; ++seen) {
      wait([&] { return n_started_.load(std::memory_order_acquire) != seen; });
      if (is_over_) return;
      call_(job_, Share{member, size_});
      n_working_.fetch_sub(1, std::memory_order_release);
    }
  }

  // True: it took long.
  template <typename Condition>
  static bool wait(Condition&& is_met) {
    constexpr int kSpins = 4000;  // some 50 us; then others may need the core more
    int spin = 0;
    for (; !is_met(); ++spin) {
      if (spin < kSpins) {
#ifdef PNS_X86
        _mm_pause();
#endif
      } else if (spin < kSpins + 100) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(std::chrono::microseconds(50));
      }
    }
    return spin >= kSpins;
  }

  int size_ = 1;
  std::vector<std::thread> threads_;
  void (*call_)(const void*, Share) = nullptr;
  const void* job_ = nullptr;
  bool is_over_ = false;
  int64_t n_alone_ = 0, pause_ = kFirstPause, n_in_time_ = 0;
  int patience_ = kPatience;
  std::atomic<bool> size_is_known_{false};
  alignas(64) std::atomic<uint64_t> n_started_{0};
  alignas(64) std::atomic<int> n_working_{0};
};

}  // namespace pns
