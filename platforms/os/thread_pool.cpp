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

// What a thread asks for of the next job's data when it has nothing left to do in this one. The
// caller has work to do between jobs; requests that do not fit in the core's buffers would hold it up.
constexpr size_t kWorkerAhead = 16384;
constexpr size_t kCallerAhead = 4096;

// Waiting for one piece for this long, and for several times what pieces take, means that the system
// has taken a worker's core away, for the few milliseconds of somebody else's time slice, and will
// do so again: so one thread less works for a while, which leaves a core to the others, and longer each
// time the next attempt ends the same way.
constexpr uint64_t kStallNs = 500000;
constexpr uint64_t kStallPieces = 4;
constexpr uint64_t kFirstRetryNs = 20000000;
constexpr uint64_t kLongestRetryNs = 640000000;

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

// Pieces of a job that one thread has yet to claim, and the number of the job: begin in bits 48 to
// 63, end in bits 32 to 47, job below.
using Range = uint64_t;
constexpr uint64_t kMaxUnits = 0xffff;

constexpr Range make_range(uint64_t begin, uint64_t end, uint32_t job) {
  return begin << 48 | end << 32 | job;
}
constexpr uint32_t range_begin(Range r) { return static_cast<uint32_t>(r >> 48); }
constexpr uint32_t range_end(Range r) { return static_cast<uint32_t>(r >> 32) & 0xffffu; }
constexpr bool is_empty(Range r) { return range_begin(r) >= range_end(r); }

struct alignas(kLine) Slot {
  std::atomic<Range> range{0};
};

struct Pool;
struct alignas(kLine) Worker {
  Pool* pool = nullptr;
  int index = 0;
  pthread_t thread{};
};

// Every thread begins with a run of consecutive pieces of its own, which keeps its reading of memory
// in one stream, and then takes pieces from the far ends of the others' runs.
//
// A thread reads a range, then the job's fields, and claims a piece by a compare-exchange of the
// whole range. The fields change only while all ranges are empty, and a range never comes back to
// an earlier value, so a success proves that the fields were the job's own.
struct Pool final {
  // The job. A unit is `unit` consecutive pieces, more than one only where there are very many.
  alignas(kLine) std::atomic<ThreadPool::Task> task{nullptr};
  std::atomic<void*> context{nullptr};
  std::atomic<size_t> pieces{0};
  std::atomic<size_t> unit{1};
  std::atomic<const uint8_t*> ahead_data{nullptr};
  std::atomic<size_t> ahead_piece_bytes{0}, ahead_pieces{0};

  alignas(kLine) std::atomic<uint32_t> done{0};  // units of the job that have returned

  // The caller's own: the job's number; when the team has one more thread again, and how long after the
  // last stall that was to be. 0: there has been none for long enough.
  alignas(kLine) uint32_t job = 0;
  uint64_t retry_at = 0, retry_for = 0;

  // Threads that share jobs, the caller's included: those with the lowest numbers. The others are parked.
  // One that has not noticed yet may still take a piece; that changes nothing.
  alignas(kLine) std::atomic<int> team{1};

  // Sleeping. The counters are read without the lock first; see run().
  alignas(kLine) std::atomic<uint32_t> sleepers{0};
  std::atomic<uint32_t> caller_sleeps{0};
  std::atomic<bool> stop{false};
  pthread_mutex_t lock;
  pthread_cond_t work;
  pthread_cond_t finished;
  pthread_cond_t parked;

  int n_threads = 1;          // that have a slot
  int n_workers = 0;          // that have been started
  Slot* slots = nullptr;      // [n_threads]; the caller's is the first
  Worker* workers = nullptr;  // [n_threads - 1]

  static Pool* of(ThreadPool* pool) { return reinterpret_cast<Pool*>(pool); }
  static const Pool* of(const ThreadPool* pool) { return reinterpret_cast<const Pool*>(pool); }

  bool has_work(std::memory_order order) const {
    for (int i = 0; i < n_threads; ++i) {
      if (!is_empty(slots[i].range.load(order))) return true;
    }
    return false;
  }

  // Claims and runs a unit of the slot: the first, or (stealing) the last. False: it is empty.
  bool work_once(Slot& slot, bool steal) {
    Range now = slot.range.load(std::memory_order_acquire);
    for (;;) {
      if (is_empty(now)) return false;
      const uint32_t begin = range_begin(now), end = range_end(now);
      const ThreadPool::Task call = task.load(std::memory_order_relaxed);
      void* argument = context.load(std::memory_order_relaxed);
      const size_t n = pieces.load(std::memory_order_relaxed);
      const size_t size = unit.load(std::memory_order_relaxed);
      const auto number = static_cast<uint32_t>(now);
      const Range rest =
          steal ? make_range(begin, end - 1, number) : make_range(begin + 1, end, number);
      if (slot.range.compare_exchange_weak(now, rest, std::memory_order_acq_rel,
                                           std::memory_order_acquire)) {
        const size_t first = (steal ? end - 1 : begin) * size;
        for (size_t i = first; i < first + size && i < n; ++i) call(argument, i);
        return true;
      }
    }
  }

  // Works until no slot has a unit left. Returns how many units it did.
  uint32_t work_all(int self) {
    uint32_t units = 0;
    while (work_once(slots[self], false)) ++units;
    for (int i = 1; i < n_threads; ++i) {
      int victim = self + i;
      if (victim >= n_threads) victim -= n_threads;
      while (work_once(slots[victim], true)) ++units;
    }
    return units;
  }

  // What this thread will read first in the job that follows.
  struct Ahead {
    const uint8_t* data = nullptr;
    size_t bytes = 0;
  };
  Ahead ahead_of(int self) const {
    const uint8_t* data = ahead_data.load(std::memory_order_relaxed);
    if (data == nullptr) return {};
    const size_t n = ahead_pieces.load(std::memory_order_relaxed);
    const size_t bytes = ahead_piece_bytes.load(std::memory_order_relaxed);
    const int threads = team.load(std::memory_order_relaxed);
    if (self >= threads) return {};
    const size_t begin = share(n, self, threads), end = share(n, self + 1, threads);
    return {data + begin * bytes, (end - begin) * bytes};
  }
  static void fetch(const Ahead& ahead, size_t limit) {
    const size_t bytes = ahead.bytes < limit ? ahead.bytes : limit;
    for (size_t i = 0; i < bytes; i += kLine) __builtin_prefetch(ahead.data + i, 0, 2);
  }

  // The first of n units that belongs to the thread.
  static size_t share(size_t n, int thread, int threads) {
    return n * static_cast<size_t>(thread) / static_cast<size_t>(threads);
  }

  bool is_parked(int self) const {
    return self >= team.load(std::memory_order_relaxed) && !stop.load(std::memory_order_relaxed);
  }

  void work_until_stopped(int self) {
    for (;;) {
      if (is_parked(self)) {
        pthread_mutex_lock(&lock);
        while (is_parked(self)) pthread_cond_wait(&parked, &lock);
        pthread_mutex_unlock(&lock);
      }
      // Read before any work is claimed, so of a job that this thread has a part in, or empty.
      const Ahead ahead = ahead_of(self);
      const uint32_t units = work_all(self);
      if (units > 0) {
        // Sequentially consistent with caller_sleeps: either the caller sees these units, or we see
        // that it sleeps.
        done.fetch_add(units, std::memory_order_seq_cst);
        if (caller_sleeps.load(std::memory_order_seq_cst) != 0) {
          pthread_mutex_lock(&lock);
          pthread_cond_signal(&finished);
          pthread_mutex_unlock(&lock);
        }
        fetch(ahead, kWorkerAhead);
      }
      const auto ready = [this, self] {
        return has_work(std::memory_order_acquire) || stop.load(std::memory_order_relaxed) ||
               is_parked(self);
      };
      if (!spin(kWorkerSpinNs, ready)) {
        pthread_mutex_lock(&lock);
        sleepers.fetch_add(1, std::memory_order_seq_cst);
        while (!stop.load(std::memory_order_seq_cst) && !has_work(std::memory_order_seq_cst) &&
               !is_parked(self)) {
          pthread_cond_wait(&work, &lock);
        }
        sleepers.fetch_sub(1, std::memory_order_seq_cst);
        pthread_mutex_unlock(&lock);
      }
      if (stop.load(std::memory_order_relaxed)) return;
    }
  }

  void set_team(int threads) {
    pthread_mutex_lock(&lock);
    team.store(threads, std::memory_order_relaxed);
    pthread_cond_broadcast(&parked);  // those that are in it now
    pthread_cond_broadcast(&work);    // those that sleep and no longer are
    pthread_mutex_unlock(&lock);
  }

  // How many threads share the job that begins.
  int next_team() {
    const int threads = team.load(std::memory_order_relaxed);
    if (retry_for == 0) return threads;
    const uint64_t now = monotonic_ns();
    if (threads < n_threads && now >= retry_at) {
      retry_at = now + retry_for;
      set_team(threads + 1);
      return threads + 1;
    }
    if (threads == n_threads && now > retry_at + kLongestRetryNs) retry_for = 0;
    return threads;
  }

  void note_stall(uint64_t now) {
    retry_for = retry_for == 0                    ? kFirstRetryNs
                : retry_for < kLongestRetryNs / 2 ? 2 * retry_for
                                                  : kLongestRetryNs;
    retry_at = now + retry_for;
    const int threads = team.load(std::memory_order_relaxed);
    if (threads > 1) set_team(threads - 1);
  }

  void run(size_t n, ThreadPool::Task call, void* argument, const ThreadPool::Ahead& next) {
    const int threads = next_team();
    if (threads == 1) {
      for (size_t i = 0; i < n; ++i) call(argument, i);
      return;
    }
    const size_t size = (n + kMaxUnits - 1) / kMaxUnits;
    const size_t units = (n + size - 1) / size;
    ++job;
    done.store(0, std::memory_order_relaxed);
    pieces.store(n, std::memory_order_relaxed);
    unit.store(size, std::memory_order_relaxed);
    task.store(call, std::memory_order_relaxed);
    context.store(argument, std::memory_order_relaxed);
    ahead_data.store(next.data, std::memory_order_relaxed);
    ahead_piece_bytes.store(next.piece_bytes, std::memory_order_relaxed);
    ahead_pieces.store(next.pieces, std::memory_order_relaxed);
    // Sequentially consistent with `sleepers`: either a worker on its way to sleep sees the job, or
    // we see the worker.
    for (int i = threads - 1; i >= 0; --i) {
      slots[i].range.store(make_range(share(units, i, threads), share(units, i + 1, threads), job),
                           std::memory_order_seq_cst);
    }
    if (sleepers.load(std::memory_order_seq_cst) != 0) {
      pthread_mutex_lock(&lock);
      if (units > 2) {
        pthread_cond_broadcast(&work);
      } else {
        pthread_cond_signal(&work);
      }
      pthread_mutex_unlock(&lock);
    }
    const uint64_t began = monotonic_ns();
    const uint32_t mine = work_all(0);
    done.fetch_add(mine, std::memory_order_seq_cst);
    fetch(ahead_of(0), kCallerAhead);
    if (spin(kCallerSpinNs, [&] { return done.load(std::memory_order_acquire) == units; })) return;
    const uint64_t waits = monotonic_ns();
    pthread_mutex_lock(&lock);
    caller_sleeps.store(1, std::memory_order_seq_cst);
    while (done.load(std::memory_order_seq_cst) != units) pthread_cond_wait(&finished, &lock);
    caller_sleeps.store(0, std::memory_order_relaxed);
    pthread_mutex_unlock(&lock);
    const uint64_t now = monotonic_ns();
    const uint64_t piece = (waits - began) / (mine > 0 ? mine : 1);
    if (mine > 0 && now - waits > kStallNs && now - waits > kStallPieces * piece) note_stall(now);
  }

  static void* thread_main(void* self) {
    const auto* worker = static_cast<const Worker*>(self);
    worker->pool->work_until_stopped(worker->index);
    return nullptr;
  }
};

}  // namespace

size_t ThreadPool::required_bytes(int threads) {
  const size_t workers = threads > 1 ? static_cast<size_t>(threads) - 1 : 0;
  return sizeof(Pool) + (workers + 1) * sizeof(Slot) + workers * sizeof(Worker);
}

int ThreadPool::create(void* memory, int threads, ThreadPool** result) {
  *result = nullptr;
  if (threads < 1 || threads > kMaxThreads) return EINVAL;
  Pool* pool = new (memory) Pool;
  pool->n_threads = threads;
  pool->team.store(threads, std::memory_order_relaxed);
  pool->slots = reinterpret_cast<Slot*>(pool + 1);
  for (int i = 0; i < threads; ++i) new (&pool->slots[i]) Slot;
  pool->workers = reinterpret_cast<Worker*>(pool->slots + threads);
  int error = pthread_mutex_init(&pool->lock, nullptr);
  if (error != 0) return error;
  pthread_cond_t* const conditions[] = {&pool->work, &pool->finished, &pool->parked};
  size_t made = 0;
  while (made < 3 && (error = pthread_cond_init(conditions[made], nullptr)) == 0) ++made;
  if (error != 0) {
    while (made > 0) pthread_cond_destroy(conditions[--made]);
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
      Worker* worker = new (&pool->workers[i]) Worker;
      worker->pool = pool;
      worker->index = i + 1;
      error = pthread_create(&worker->thread, &attributes, &Pool::thread_main, worker);
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
  pthread_cond_broadcast(&pool->parked);
  pthread_mutex_unlock(&pool->lock);
  for (int i = 0; i < pool->n_workers; ++i) pthread_join(pool->workers[i].thread, nullptr);
  for (pthread_cond_t* condition : {&pool->work, &pool->finished, &pool->parked})
    pthread_cond_destroy(condition);
  pthread_mutex_destroy(&pool->lock);
  pool->~Pool();
}

int ThreadPool::threads() const { return Pool::of(this)->n_workers + 1; }

void ThreadPool::run(size_t n, Task task, void* context, const Ahead& next) {
  Pool* pool = Pool::of(this);
  if (pool->n_workers == 0 || n <= 1) {
    for (size_t i = 0; i < n; ++i) task(context, i);
    return;
  }
  pool->run(n, task, context, next);
}

}  // namespace mamba_edge
