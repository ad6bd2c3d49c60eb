// The threads of a call: torch's own (OpenMP's), since those keep a core busy for a millisecond after each of torch's
// operations, and whoever wants another thread there waits. With threads of our own a step of a small convolutional
// network took 1.7 ms on two cores, as long as on one; with torch's it takes 1.24. The price: OpenMP waits for all its
// threads, on a machine that others keep busy for the next time slice. Where torch's cannot be used (another build of it,
// a forked child) there are threads that are started once and kept: starting one costs 37 us, as much as a whole product
// of 100 x 100 weights.
#pragma once

namespace pns {

// f(context, worker) once for every worker in [0, n_threads), worker 0 on the calling thread; returns when all have.
// Where the threads are not to be had (another call has them, or the system gives none) fewer workers run, down to
// worker 0 alone: f must share out its work as it goes. f must not throw.
void run_on_team(int n_threads, void (*f)(void* context, int worker), void* context);

}  // namespace pns
