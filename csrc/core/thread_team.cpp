#include "core/thread_team.h"

#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace pns {
namespace {

// ---- torch's threads

// The OpenMP runtime that torch has loaded, whichever it is: GCC's, and LLVM's and Intel's by the same names.
struct OpenMp {
  void (*parallel)(void (*f)(void*), void* context, unsigned n_threads, unsigned flags);
  int (*thread_num)();
  int (*max_threads)();
  int (*in_parallel)();
};

template <typename F>
bool find(const char* name, F* f) {
  *f = reinterpret_cast<F>(dlsym(RTLD_DEFAULT, name));
  return *f != nullptr;
}

// Null where there is none.
const OpenMp* find_openmp() {
  static OpenMp found;
  const bool is_there = find("GOMP_parallel", &found.parallel) && find("omp_get_thread_num", &found.thread_num) &&
                        find("omp_get_max_threads", &found.max_threads) && find("omp_in_parallel", &found.in_parallel);
  return is_there ? &found : nullptr;
}

// Whether as many threads can be had: OpenMP ends the process where it is refused one. It keeps threads for each thread
// that calls it, so each finds out once.
bool can_have(int n_threads) {
  static thread_local int n_seen = 1;
  if (n_threads <= n_seen) return true;
  std::atomic<bool> is_over{false};
  std::vector<std::thread> threads;
  try {
    while (static_cast<int>(threads.size()) < n_threads - 1) {
      threads.emplace_back([&] { while (!is_over) std::this_thread::yield(); });
    }
    n_seen = n_threads;
  } catch (const std::system_error&) {
  }
  is_over = true;
  for (auto& thread : threads) thread.join();
  return n_threads <= n_seen;
}

struct OpenMpJob {
  const OpenMp* openmp;
  void (*f)(void*, int);
  void* context;
  int n_threads;
};

// All of OpenMP's threads come, and those beyond n_threads go again: a team of another size would make GCC's runtime end
// threads and start them anew (as torch's ParallelOpenMP.h notes).
void run_on_openmp(const OpenMp& openmp, int n_threads, void (*f)(void*, int), void* context) {
  OpenMpJob job{&openmp, f, context, n_threads};
  openmp.parallel(
      [](void* argument) {
        const auto& mine = *static_cast<const OpenMpJob*>(argument);
        const int worker = mine.openmp->thread_num();
        if (worker < mine.n_threads) mine.f(mine.context, worker);
      },
      &job, 0, 0);
}

// ---- threads of our own, where torch's cannot be used

// How long a thread looks for work before it sleeps: the parts of one call, and a forward and its backward in Python,
// follow each other faster than that.
constexpr std::chrono::microseconds kPatience{200};

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

// Whether is_done() came true within the patience. Between looks the core is offered to whoever waits for it, torch's own
// threads for instance.
template <typename F>
bool spin_until(F&& is_done) {
  const auto give_up = std::chrono::steady_clock::now() + kPatience;
  do {
    for (int i = 0; i < 64; ++i) {
      if (is_done()) return true;
      pause();
    }
    std::this_thread::yield();
  } while (std::chrono::steady_clock::now() < give_up);
  return false;
}

class ThreadTeam {
 public:
  void run(int n_threads, void (*f)(void*, int), void* context) {
    if (is_busy_.exchange(true, std::memory_order_acquire)) return f(context, 0);
    n_threads = grow(n_threads);
    f_ = f, context_ = context;
    n_done_.store(0, std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(sleep_);
      places_.store(n_threads - 1, std::memory_order_release);
    }
    wake_.notify_all();
    f(context, 0);
    // Whoever has not come by now is not waited for.
    const int n_joined = n_threads - 1 - places_.exchange(0, std::memory_order_acq_rel);
    auto is_done = [&] { return n_done_.load(std::memory_order_acquire) == n_joined; };
    if (!spin_until(is_done)) {
      std::unique_lock<std::mutex> lock(sleep_);
      done_.wait(lock, is_done);
    }
    is_busy_.store(false, std::memory_order_release);
  }

 private:
  // Threads there are, the caller included, up to n_threads.
  int grow(int n_threads) {
    try {
      for (; n_started_ < n_threads - 1; ++n_started_) std::thread(&ThreadTeam::work, this).detach();
    } catch (const std::system_error&) {
      // No thread left: those that started, and the caller, do the work.
    }
    return n_threads < n_started_ + 1 ? n_threads : n_started_ + 1;
  }

  // A place in the present call, or 0: none is free.
  int take_place() {
    int free = places_.load(std::memory_order_relaxed);
    while (free > 0 && !places_.compare_exchange_weak(free, free - 1, std::memory_order_acq_rel)) {
    }
    return free;
  }

  void work() {
    int place = 0;
    auto has_place = [&] { return (place = take_place()) > 0; };
    while (true) {
      if (!spin_until(has_place)) {
        std::unique_lock<std::mutex> lock(sleep_);
        wake_.wait(lock, has_place);
      }
      f_(context_, place);
      n_done_.fetch_add(1, std::memory_order_acq_rel);
      { std::lock_guard<std::mutex> lock(sleep_); }  // the caller has not looked yet, or sleeps: no notice is lost
      done_.notify_one();
    }
  }

  std::atomic<bool> is_busy_{false};
  std::atomic<int> places_{0};  // workers the present call still takes
  std::atomic<int> n_done_{0};
  void (*f_)(void*, int) = nullptr;  // read only by who took a place
  void* context_ = nullptr;
  int n_started_ = 0;
  std::mutex sleep_;
  std::condition_variable wake_, done_;
};

// Never destroyed: its threads may outlive static destructors. A forked child has none of them and begins anew.
std::atomic<ThreadTeam*> the_team{nullptr};

ThreadTeam& team() {
  ThreadTeam* existing = the_team.load(std::memory_order_acquire);
  if (existing != nullptr) return *existing;
  auto* mine = new ThreadTeam();
  if (the_team.compare_exchange_strong(existing, mine)) return *mine;
  delete mine;
  return *existing;
}

// Nor has it OpenMP's threads, for which OpenMP would wait.
std::atomic<bool> is_forked{false};
std::atomic<bool> is_busy{false};

void begin_anew() {
  the_team = nullptr;
  is_forked = true, is_busy = false;
}

}  // namespace

void run_on_team(int n_threads, void (*f)(void* context, int worker), void* context) {
  static const int registered = pthread_atfork(nullptr, nullptr, begin_anew);
  (void)registered;
  static const OpenMp* const openmp = find_openmp();
  if (openmp == nullptr || is_forked) return team().run(n_threads, f, context);
  if (openmp->in_parallel() || is_busy.exchange(true, std::memory_order_acquire)) return f(context, 0);
  if (can_have(openmp->max_threads())) {
    run_on_openmp(*openmp, n_threads, f, context);
  } else {
    team().run(n_threads, f, context);
  }
  is_busy.store(false, std::memory_order_release);
}

}  // namespace pns
