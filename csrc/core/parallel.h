// Items handed out one by one to threads. Which thread gets which item never changes a result: a kernel's item
// owns its output. A thread costs 15-30 us to start, so callers ask for one thread below about 200 us of work.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace pns {

// f(item, worker) for item in [0, n_items), worker in [0, n_threads). The first exception is rethrown here.
template <typename F>
void parallel_items(int64_t n_items, int n_threads, F&& f) {
  n_threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(n_threads, n_items)));
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
  std::vector<std::thread> threads;
  try {
    for (int t = 1; t < n_threads; ++t) threads.emplace_back(work, t);
  } catch (const std::system_error&) {
    // No thread left: those that started, and this one, do the work. Nothing depends on how many there are.
  }
  work(0);
  for (auto& thread : threads) thread.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace pns
