// The process's worker threads: those of the OpenMP that torch runs on, for calls from the main thread of a process that
// has one, else our own.
// Torch's threads look for work for some milliseconds after each of its parallel loops, on every core there is. Threads
// of our own had to share those cores with them, and came when a call was nearly over: between torch's ops,
// masked_linear, 1,024 x 1,024, density 0.1, forward and backward, took 3.2 ms with them and takes 2.1 with torch's. The
// price: OpenMP waits for all its threads, on a machine that others keep busy for the next time slice; our own are not
// waited for where they come late.
// Starting a thread of our own costs 37 us here (waking a sleeping one 21 us, handing work to one that still looks for
// it 0.2 us), as much as a whole product of 100 x 100 weights; so they are started once and kept.
#pragma once

namespace pns {

// f(context, worker) once for every worker in [0, n_threads), worker 0 on the calling thread; returns when all have. All
// treat denormals as the calling thread does at that time.
// Where the threads are not to be had (another call has them, or the system gives none of our own) fewer workers run,
// down to worker 0 alone: f must share out its work as it goes. f must not throw.
void run_on_team(int n_threads, void (*f)(void* context, int worker), void* context);

}  // namespace pns
