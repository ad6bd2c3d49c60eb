// Long calls that Python may stop: Ctrl-C, or a progress callback that raises.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>

#include "core/flush_denormals.h"
#include "core/parallel.h"

namespace pns {

// Whether to stop. The calling thread asks in between its work, since Python's signals arrive there, and while it waits
// for the others; the others see the answer.
class Interruption {
 public:
  static constexpr auto kBetweenLooks = std::chrono::milliseconds(50);

  // should_stop, or null, is asked every 50 ms with what is done.
  explicit Interruption(const std::function<bool(int64_t)>& should_stop) : should_stop_(should_stop) {}

  std::atomic<int64_t> n_done{0};

  bool is_seen() const { return is_seen_.load(std::memory_order_relaxed); }
  void stop() { is_seen_ = true; }

  // By the calling thread.
  bool ask() {
    if (is_seen() || !should_stop_) return is_seen();
    const auto now = std::chrono::steady_clock::now();
    if (now - last_ < kBetweenLooks) return false;
    last_ = now;
    const DenormalsAs as_before_the_call(denormals_);  // Python runs: a progress callback, a signal's handler
    if (should_stop_(n_done)) stop();
    return is_seen();
  }

 private:
  const std::function<bool(int64_t)>& should_stop_;
  const unsigned denormals_ = DenormalsAs::mode();
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
  std::atomic<bool> is_seen_{false};
};

// f(worker) on every thread, where worker 0 is the calling one: it asks now and then, the others look at is_seen. Done
// with its own, the calling thread goes on asking. False: stopped.
template <typename F>
bool run_interruptible(int n_threads, Interruption& interruption, F&& f) {
  std::mutex mutex;
  std::condition_variable is_last;
  int n_working = 0;
  const auto leave = [&] {
    std::lock_guard<std::mutex> lock(mutex);
    if (--n_working == 0) is_last.notify_one();
  };
  parallel_items(n_threads, n_threads, [&](int64_t, int worker) {
    {
      std::lock_guard<std::mutex> lock(mutex);
      ++n_working;
    }
    try {
      f(worker);
    } catch (...) {
      interruption.stop();
      leave();
      throw;
    }
    leave();
    if (worker != 0) return;
    std::unique_lock<std::mutex> lock(mutex);
    while (!is_last.wait_for(lock, Interruption::kBetweenLooks, [&] { return n_working == 0; })) {
      lock.unlock();  // Python runs
      interruption.ask();
      lock.lock();
    }
  });
  return !interruption.is_seen();
}

}  // namespace pns
