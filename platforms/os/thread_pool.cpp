#include "platforms/os/thread_pool.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <cstdint>
#include <new>

#include "platforms/os/clock.h"

namespace mamba_edge {
namespace {

constexpr int kMaxThreads = 1024;
constexpr size_t kLine = 64;
constexpr size_t kStackBytes = size_t{512} << 10;
constexpr uint64_t kWorkerSpinNs = 40000;  // from the end of one job to the start of the next
constexpr uint64_t kCallerSpinNs = 10000;  // for the last pieces that workers hold

// Waiting for one piece for this long, and for several times what pieces take, means that the system
// has taken the worker's core away, for the few milliseconds of somebody else's time slice, and will
// do so again: so the caller works alone for a while, and longer each time the next attempt ends the
// same way.
constexpr uint64_t kStallNs = 500000;
constexpr uint64_t kStallPieces = 4;
constexpr uint64_t kFirstAloneNs = 20000000;
constexpr uint64_t kLongestAloneNs = 640000000;

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
  __asm__ volatile("yield");
#endif
}

// Spins until `ready` or the time is over, looking at the clock now and then.
template <typename Ready>
bool spin(uint64_t ns, const Ready& ready) {
  uint64_t end = 0;
  for (;;) {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return true;
      relax();
    }
    const uint64_t now = monotonic_ns();
    if (end == 0) end = now + ns;
    if (now >= end) return ready();
  }
}

// `ticket` is the job's number in the high half and, in the low half, how many of its pieces are
// unclaimed. A thread reads the ticket, then the job's fields, and claims a piece by a
// compare-exchange of the whole ticket. The fields change only while the ticket says 0, and it
// never comes back to an earlier value, so a success proves that they were the job's own.
struct Pool final {
  alignas(kLine) std::atomic<uint64_t> ticket{0};
  std::atomic<uint32_t> pieces{0};
  std::atomic<ThreadPool::Task> task{nullptr};
  std::atomic<void*> context{nullptr};

  alignas(kLine) std::atomic<uint32_t> done{0};  // pieces of the job that have returned

  // The caller's own: until when it works alone, and for how long it did last.
  uint64_t alone_until = 0, alone_for = 0;

  // Sleeping. The counters are read without the lock first; see run().
  alignas(kLine) std::atomic<uint32_t> sleepers{0};
  std::atomic<uint32_t> caller_sleeps{0};
  std::atomic<bool> stop{false};
  pthread_mutex_t lock;
  pthread_cond_t work;
  pthread_cond_t finished;

  int n_workers = 0;
  pthread_t* workers = nullptr;  // [n_workers]

  static Pool* of(ThreadPool* pool) { return reinterpret_cast<Pool*>(pool); }
  static const Pool* of(const ThreadPool* pool) { return reinterpret_cast<const Pool*>(pool); }

  bool has_work() const {
    return static_cast<uint32_t>(ticket.load(std::memory_order_acquire)) != 0;
  }

  // Does one piece of the current job. False if there is none to claim.
  bool work_once() {
    uint64_t now = ticket.load(std::memory_order_acquire);
    for (;;) {
      const uint32_t left = static_cast<uint32_t>(now);
      if (left == 0) return false;
      const uint32_t n = pieces.load(std::memory_order_relaxed);
      const ThreadPool::Task call = task.load(std::memory_order_relaxed);
      void* argument = context.load(std::memory_order_relaxed);
      if (ticket.compare_exchange_weak(now, now - 1, std::memory_order_acq_rel,
                                       std::memory_order_acquire)) {
        call(argument, n - left);
        // Sequentially consistent with caller_sleeps: either the caller sees this piece, or we see
        // that it sleeps.
        done.fetch_add(1, std::memory_order_seq_cst);
        return true;
      }
    }
  }

  void work_until_done() {
    for (;;) {
      while (work_once()) {
        if (caller_sleeps.load(std::memory_order_seq_cst) != 0) {
          pthread_mutex_lock(&lock);
          pthread_cond_signal(&finished);
          pthread_mutex_unlock(&lock);
        }
      }
      if (spin(kWorkerSpinNs,
               [this] { return has_work() || stop.load(std::memory_order_relaxed); })) {
        if (stop.load(std::memory_order_relaxed)) return;
        continue;
      }
      pthread_mutex_lock(&lock);
      sleepers.fetch_add(1, std::memory_order_seq_cst);
      while (!stop.load(std::memory_order_seq_cst) && !has_work_now())
        pthread_cond_wait(&work, &lock);
      sleepers.fetch_sub(1, std::memory_order_seq_cst);
      pthread_mutex_unlock(&lock);
      if (stop.load(std::memory_order_relaxed)) return;
    }
  }

  // As has_work, ordered after this thread's entry in `sleepers`.
  bool has_work_now() const {
    return static_cast<uint32_t>(ticket.load(std::memory_order_seq_cst)) != 0;
  }

  // Whether the caller should not share this job.
  bool works_alone() {
    if (alone_for == 0) return false;
    const uint64_t now = monotonic_ns();
    if (now < alone_until) return true;
    if (now > alone_until + kLongestAloneNs) alone_for = 0;  // has been well for long enough
    return false;
  }

  void note_stall(uint64_t now) {
    alone_for = alone_for == 0                    ? kFirstAloneNs
                : alone_for < kLongestAloneNs / 2 ? 2 * alone_for
                                                  : kLongestAloneNs;
    alone_until = now + alone_for;
  }

  void run(uint32_t n, ThreadPool::Task call, void* argument) {
    if (works_alone()) {
      for (uint32_t i = 0; i < n; ++i) call(argument, i);
      return;
    }
    const uint64_t job = (ticket.load(std::memory_order_relaxed) >> 32) + 1;
    done.store(0, std::memory_order_relaxed);
    pieces.store(n, std::memory_order_relaxed);
    task.store(call, std::memory_order_relaxed);
    context.store(argument, std::memory_order_relaxed);
    // Sequentially consistent with `sleepers`: either a worker on its way to sleep sees the job, or
    // we see the worker.
    ticket.store(job << 32 | n, std::memory_order_seq_cst);
    if (sleepers.load(std::memory_order_seq_cst) != 0) {
      pthread_mutex_lock(&lock);
      if (n > 2) {
        pthread_cond_broadcast(&work);
      } else {
        pthread_cond_signal(&work);
      }
      pthread_mutex_unlock(&lock);
    }
    const uint64_t began = monotonic_ns();
    uint32_t mine = 0;
    while (work_once()) ++mine;
    if (spin(kCallerSpinNs, [this, n] { return done.load(std::memory_order_acquire) == n; }))
      return;
    const uint64_t waits = monotonic_ns();
    pthread_mutex_lock(&lock);
    caller_sleeps.store(1, std::memory_order_seq_cst);
    while (done.load(std::memory_order_seq_cst) != n) pthread_cond_wait(&finished, &lock);
    caller_sleeps.store(0, std::memory_order_relaxed);
    pthread_mutex_unlock(&lock);
    const uint64_t now = monotonic_ns();
    const uint64_t piece = (waits - began) / (mine > 0 ? mine : 1);
    if (mine > 0 && now - waits > kStallNs && now - waits > kStallPieces * piece) note_stall(now);
  }

  static void* thread_main(void* self) {
    static_cast<Pool*>(self)->work_until_done();
    return nullptr;
  }
};

}  // namespace

size_t ThreadPool::required_bytes(int threads) {
  const size_t workers = threads > 1 ? static_cast<size_t>(threads) - 1 : 0;
  return (sizeof(Pool) + workers * sizeof(pthread_t) + kLine - 1) / kLine * kLine;
}

int ThreadPool::create(void* memory, int threads, ThreadPool** result) {
  *result = nullptr;
  if (threads < 1 || threads > kMaxThreads) return EINVAL;
  Pool* pool = new (memory) Pool;
  pool->workers = reinterpret_cast<pthread_t*>(pool + 1);
  int error = pthread_mutex_init(&pool->lock, nullptr);
  if (error != 0) return error;
  error = pthread_cond_init(&pool->work, nullptr);
  if (error == 0) {
    error = pthread_cond_init(&pool->finished, nullptr);
    if (error != 0) pthread_cond_destroy(&pool->work);
  }
  if (error != 0) {
    pthread_mutex_destroy(&pool->lock);
    return error;
  }

  // Workers take no signals: those are the business of the program's own threads.
  sigset_t all, before;
  sigfillset(&all);
  pthread_attr_t attributes;
  error = pthread_attr_init(&attributes);
  if (error == 0) {
    pthread_attr_setstacksize(&attributes, kStackBytes);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    for (int i = 0; i < threads - 1 && error == 0; ++i) {
      error = pthread_create(&pool->workers[i], &attributes, &Pool::thread_main, pool);
      if (error == 0) ++pool->n_workers;
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    pthread_attr_destroy(&attributes);
  }
  ThreadPool* handle = reinterpret_cast<ThreadPool*>(pool);
  if (error != 0) {
    destroy(handle);
    return error;
  }
  *result = handle;
  return 0;
}

void ThreadPool::destroy(ThreadPool* handle) {
  if (handle == nullptr) return;
  Pool* pool = Pool::of(handle);
  pthread_mutex_lock(&pool->lock);
  pool->stop.store(true, std::memory_order_seq_cst);
  pthread_cond_broadcast(&pool->work);
  pthread_mutex_unlock(&pool->lock);
  for (int i = 0; i < pool->n_workers; ++i) pthread_join(pool->workers[i], nullptr);
  pthread_cond_destroy(&pool->finished);
  pthread_cond_destroy(&pool->work);
  pthread_mutex_destroy(&pool->lock);
  pool->~Pool();
}

int ThreadPool::threads() const { return Pool::of(this)->n_workers + 1; }

void ThreadPool::run(size_t n, Task task, void* context) {
  Pool* pool = Pool::of(this);
  if (pool->n_workers == 0 || n <= 1) {
    for (size_t i = 0; i < n; ++i) task(context, i);
    return;
  }
  pool->run(static_cast<uint32_t>(n), task, context);
}

}  // namespace mamba_edge
