// A fixed set of threads that share out the pieces of one job at a time.
//
// Pieces are handed out in order, one by one, to whoever is free; the caller works too and waits at
// the end only for pieces that a worker has begun, so a worker that the system has not scheduled
// holds nothing up. Workers spin for a moment after a job, because the next one usually follows at
// once, and then sleep. Where a worker turns out to have lost its core to another program in the middle
// of a piece, the caller does whole jobs by itself for a while (20 ms, then longer while that goes
// on). So pieces must not wait for one another. run() allocates nothing and, with one thread, makes no system call. Does
// not pin threads, and does not nest: a task must not call run().
#pragma once

#include <cstddef>

namespace mamba_edge {

class ThreadPool {
 public:
  using Task = void (*)(void* context, size_t index);

  // Bytes of memory, 64-byte aligned, that a pool of `threads` threads lives in. The calling thread
  // counts as one.
  static size_t required_bytes(int threads);

  // Starts threads - 1 workers. Returns 0 and sets *pool, or an errno value, having undone
  // everything.
  static int create(void* memory, int threads, ThreadPool** pool);

  // Ends and joins the workers; the memory is the caller's again. NULL is allowed.
  static void destroy(ThreadPool* pool);

  int threads() const;

  // Calls task(context, i) once for every i in [0, n), n < 2^32, and returns when all have
  // returned. What the caller wrote before is visible to the tasks, and what they wrote is visible
  // afterwards. One caller at a time.
  void run(size_t n, Task task, void* context);

  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

 private:
  ThreadPool() = default;
  ~ThreadPool() = default;
};

}  // namespace mamba_edge
