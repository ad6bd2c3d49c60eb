#include "core/thread_team.h"

#include <pthread.h>
#include <unistd.h>
#if defined(__linux__) && !defined(__SANITIZE_THREAD__)
#include <dlfcn.h>
#include <sys/syscall.h>
#endif

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#include "core/flush_denormals.h"

namespace pns {
namespace {

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

const pid_t process_at_load = getpid();

// The OpenMP that torch runs on, if this process has loaded one. It is asked for by name: nothing here links it.
class OpenMp {
 public:
  OpenMp() {
#if defined(__linux__) && !defined(__SANITIZE_THREAD__)  // which does not see OpenMP's barriers
    parallel_ = reinterpret_cast<decltype(parallel_)>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    most_threads_ = reinterpret_cast<decltype(most_threads_)>(dlsym(RTLD_DEFAULT, "omp_get_max_threads"));
#endif
  }

  // Every thread that calls OpenMP gets a team of its own: only the main thread's is worth having. In a forked child
  // OpenMP would wait for threads that the parent has.
  bool is_for(int n_threads) const {
    if (parallel_ == nullptr || most_threads_ == nullptr || is_forked_) return false;
    static thread_local const bool is_main = is_main_thread();
    return is_main && n_threads <= most_threads_();
  }

  // All threads of the team come, as in torch's own loops: another number would make it end or start some.
  void run(int n_threads, void (*f)(void*, int), void* context) const {
    struct Call {
      int n_threads;
      void (*f)(void*, int);
      void* context;
      std::thread::id caller;
      std::atomic<int> next{1};
    } call{n_threads, f, context, std::this_thread::get_id()};
    auto work = [](void* given) {
      Call& c = *static_cast<Call*>(given);
      const int worker = std::this_thread::get_id() == c.caller ? 0 : c.next++;
      if (worker < c.n_threads) c.f(c.context, worker);
    };
    parallel_(work, &call, 0, 0);
  }

 private:
  static bool is_main_thread() {
#ifdef __linux__
    return syscall(SYS_gettid) == getpid();
#else
    return false;
#endif
  }

  void (*parallel_)(void (*f)(void*), void* context, unsigned n_threads, unsigned flags) = nullptr;
  int (*most_threads_)() = nullptr;
  const bool is_forked_ = getpid() != process_at_load;
};

class ThreadTeam {
 public:
  void run(int n_threads, void (*f)(void*, int), void* context) {
    if (is_busy_.exchange(true, std::memory_order_acquire)) return f(context, 0);
    struct Job {
      void (*f)(void*, int);
      void* context;
      unsigned denormals;
    } job{f, context, DenormalsAs::mode()};
    auto as_the_caller = [](void* given, int worker) {
      const Job& j = *static_cast<const Job*>(given);
      const DenormalsAs mode(j.denormals);
      j.f(j.context, worker);
    };
    if (openmp_.is_for(n_threads)) {
      openmp_.run(n_threads, as_the_caller, &job);
    } else {
      run_on_own(n_threads, as_the_caller, &job);
    }
    is_busy_.store(false, std::memory_order_release);
  }

 private:
  void run_on_own(int n_threads, void (*f)(void*, int), void* context) {
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
  }

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

  const OpenMp openmp_;
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
  static const int registered = pthread_atfork(nullptr, nullptr, [] { the_team.store(nullptr); });
  (void)registered;
  auto* mine = new ThreadTeam();
  if (the_team.compare_exchange_strong(existing, mine)) return *mine;
  delete mine;
  return *existing;
}

}  // namespace

void run_on_team(int n_threads, void (*f)(void* context, int worker), void* context) {
  team().run(n_threads, f, context);
}

}  // namespace pns
