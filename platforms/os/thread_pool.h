// A fixed set of threads that share out the pieces of one job at a time.
//
// Every thread has a run of consecutive pieces, which it takes one by one; who is done takes pieces
// from the ends of the others' runs. The caller works too and waits at the end only for pieces that
// a worker has begun, so a worker that the system has not scheduled holds nothing up. Workers spin for a moment after a job, because the next one usually follows at
// once, and then sleep. Where a worker turns out to have lost its core to another program in the middle
// of a piece, the caller does whole jobs by itself for a while (20 ms, then longer while that goes
// on). So pieces must not wait for one another. run() allocates nothing and, with one thread, makes no system call. Does
// not pin threads, and does not nest: a task must not call run().
#pragma once

#include <cstddef>
#include <cstdint>

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

  // What the job after this one will read: `pieces` of them, one after the other. A hint.
  struct Ahead {
    const uint8_t* data = nullptr;
    size_t piece_bytes = 0, pieces = 0;
  };

  // Calls task(context, i) once for every i in [0, n) and returns when all have returned. What the
  // caller wrote before is visible to the tasks, and what they wrote is visible afterwards. One
  // caller at a time. A thread that runs out of work asks for what it will read `next`.
  void run(size_t n, Task task, void* context, const Ahead& next);
  void run(size_t n, Task task, void* context) { run(n, task, context, {}); }

  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

 private:
  ThreadPool() = default;
  ~ThreadPool() = default;
};

}  // namespace mamba_edge
