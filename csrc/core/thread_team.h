// The process's worker threads. Starting one costs 37 us here (waking a sleeping one 21 us, handing work to one that
// still looks for it 0.2 us), as much as a whole product of 100 x 100 weights; so they are started once and kept.
#pragma once

namespace pns {

// f(context, worker) once for every worker in [0, n_threads), worker 0 on the calling thread; returns when all have.
// Where the threads are not to be had (another call has them, or the system gives none) fewer workers run, down to
// worker 0 alone: f must share out its work as it goes. f must not throw.
void run_on_team(int n_threads, void (*f)(void* context, int worker), void* context);

}  // namespace pns
