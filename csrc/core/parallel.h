// Items handed out one by one to threads. Which thread gets which item never changes a result: a kernel's item
// owns its output. The threads are torch's, or kept between calls (thread_team.h), so that a call costs microseconds
// while they still look for work and some 20 us once they sleep; callers ask for one thread below about 20 us of work.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>

#include "core/thread_team.h"

namespace pns {

// f(item, worker) for item in [0, n_items), worker in [0, n_threads). The first exception is rethrown here.
template <typename F>
void parallel_items(int64_t n_items, int n_threads, F&& f) {
  n_threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(n_threads, n_items)));
  if (n_threads == 1) {
    for (int64_t i = 0; i < n_items; ++i) f(i, 0);
    return;
  }
  std::atomic<int64_t> next{0};
  std::exception_ptr error;
  std::mutex error_mutex;
  auto work = [&](int worker) {
    try {
      for (int64_t i = next++; i < n_items; i = next++) f(i, worker);
    } catch (...) {
      next = n_items;
      std::lock_guard<std::mutex> lock(error_mutex);
      if (!error) error = std::current_exception();
    }
  };
  run_on_team(n_threads, [](void* context, int worker) { (*static_cast<decltype(work)*>(context))(worker); }, &work);
  if (error) std::rethrow_exception(error);
}

}  // namespace pns
