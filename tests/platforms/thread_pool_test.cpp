#include "platforms/os/thread_pool.h"

#include <errno.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "platforms/os/clock.h"

namespace mamba_edge {
namespace {

// A pool in memory of its own.
class PoolOwner {
 public:
  explicit PoolOwner(int threads) {
    memory_.resize(ThreadPool::required_bytes(threads) + 64);
    void* at = memory_.data();
    size_t space = memory_.size();
    std::align(64, ThreadPool::required_bytes(threads), at, space);
    EXPECT_EQ(ThreadPool::create(at, threads, &pool_), 0);
  }
  ~PoolOwner() { ThreadPool::destroy(pool_); }
  PoolOwner(const PoolOwner&) = delete;
  PoolOwner& operator=(const PoolOwner&) = delete;
  ThreadPool* operator->() { return pool_; }

  template <typename F>
  void run(size_t n, F&& f) {
    pool_->run(
        n, [](void* context, size_t i) { (*static_cast<std::remove_reference_t<F>*>(context))(i); },
        &f);
  }

 private:
  std::vector<char> memory_;
  ThreadPool* pool_ = nullptr;
};

TEST(ThreadPool, RunsEveryPieceOnce) {
  for (const int threads : {1, 2, 3, 8}) {
    PoolOwner pool(threads);
    EXPECT_EQ(pool->threads(), threads);
    for (const size_t n :
         std::initializer_list<size_t>{0, 1, 2, 3, 17, 1000, 65535, 65536, 200001}) {
      std::vector<int> count(
          n, 0);  // plain ints: each belongs to one thread, and run() publishes them
      pool.run(n, [&](size_t i) { ++count[i]; });
      for (const int c : count) ASSERT_EQ(c, 1);
    }
  }
}

// Jobs in quick succession, so that workers are found spinning, on their way to sleep, and in the
// middle of claiming; each job reads what the one before wrote on another thread.
TEST(ThreadPool, PublishesBetweenJobs) {
  for (const int threads : {2, 4}) {
    PoolOwner pool(threads);
    std::vector<uint64_t> a(64, 1), b(64);
    for (int job = 0; job < 3000; ++job) {
      pool.run(64, [&](size_t i) { b[i] = a[i] + a[(i + 1) % 64]; });
      pool.run(64, [&](size_t i) { a[i] = b[i] / 2; });
      if (job % 500 == 0) usleep(300);  // longer than the workers spin
    }
    for (const uint64_t v : a) ASSERT_EQ(v, 1u);
  }
}

// Whether the caller took the pieces in the order that a team of `threads` takes them in: its own run from the
// front, then each of the others' from the back.
bool keeps_to_runs(const std::vector<size_t>& taken, size_t n, size_t threads) {
  const auto run_of = [&](size_t i) {
    size_t run = 0;
    while (i >= n * (run + 1) / threads) ++run;
    return run;
  };
  for (size_t i = 1; i < taken.size(); ++i) {
    const size_t run = run_of(taken[i]), before = run_of(taken[i - 1]);
    if (run == 0) {
      if (taken[i] != taken[i - 1] + 1) return false;
    } else if (run < before || (run == before && taken[i] > taken[i - 1])) {
      return false;
    }
  }
  return true;
}

TEST(ThreadPool, KeepsEveryThreadInItsOwnRun) {
  PoolOwner pool(3);
  const pthread_t caller = pthread_self();
  size_t seen = 0;
  for (int job = 0; job < 200; ++job) {
    std::vector<size_t> mine;
    std::atomic<int> theirs{0};
    pool.run(99, [&](size_t i) {
      if (pthread_equal(pthread_self(), caller) != 0) {
        mine.push_back(i);
      } else if (theirs.fetch_add(1) == 0 && job == 100) {
        usleep(5000);  // seems to have lost its core, so that two share the jobs that follow
      }
    });
    seen += mine.size();              // none, where the system ran only the others meanwhile
    if (mine.size() == 99) continue;  // the others were left out, or slept
    // Of the three one may be left out for a while.
    ASSERT_TRUE(keeps_to_runs(mine, 99, 3) || keeps_to_runs(mine, 99, 2))
        << testing::PrintToString(mine);
  }
  EXPECT_GT(seen, 0u);
}

TEST(ThreadPool, UsesItsWorkers) {
  PoolOwner pool(2);
  // Each of two pieces waits until the other has begun, which takes two threads.
  std::atomic<int> begun{0};
  pthread_t who[2];
  pool.run(2, [&](size_t i) {
    who[i] = pthread_self();
    begun.fetch_add(1);
    while (begun.load() < 2) std::this_thread::yield();
  });
  EXPECT_FALSE(pthread_equal(who[0], who[1]));
}

TEST(ThreadPool, WaitsForAPieceThatAWorkerHolds) {
  const pthread_t caller = pthread_self();
  for (int job = 0; job < 5; ++job) {
    PoolOwner pool(2);  // a new one each time: a pool remembers that its worker was slow
    std::atomic<bool> worker_in{false};
    std::atomic<bool> worker_out{false};
    pool.run(2, [&](size_t) {
      if (pthread_equal(pthread_self(), caller) != 0) {
        while (!worker_in.load()) std::this_thread::yield();
      } else {
        worker_in.store(true);
        usleep(2000);  // the caller has gone to sleep by then
        worker_out.store(true);
      }
    });
    ASSERT_TRUE(worker_out.load());
  }
}

// A worker that loses its core in the middle of a piece is left out of the jobs that follow at once,
// and asked again later. A busy system may hide that once, by taking the caller's core as well.
TEST(ThreadPool, LeavesOutAWorkerThatLostItsCore) {
  const pthread_t caller = pthread_self();
  PoolOwner pool(2);
  // Pieces that the worker did. With `stall` the caller waits until it has begun one, which then
  // takes 40 ms.
  const auto worker_pieces = [&](bool stall) {
    std::atomic<int> theirs{0};
    pool.run(4, [&](size_t) {
      if (pthread_equal(pthread_self(), caller) == 0) {
        if (theirs.fetch_add(1) == 0 && stall) usleep(40000);
      } else {
        const uint64_t end = monotonic_ns() + 100000000;
        while (stall && theirs.load() == 0 && monotonic_ns() < end) std::this_thread::yield();
      }
    });
    return theirs.load();
  };
  bool left_out = false;
  for (int attempt = 0; attempt < 20 && !left_out; ++attempt) {
    usleep(700000);  // whatever came before is forgotten
    left_out = worker_pieces(true) > 0 && worker_pieces(false) == 0 && worker_pieces(false) == 0;
  }
  EXPECT_TRUE(left_out);
  bool asked_again = false;
  for (int attempt = 0; attempt < 20 && !asked_again; ++attempt) {
    usleep(700000);
    asked_again = worker_pieces(true) > 0;
  }
  EXPECT_TRUE(asked_again);
}

// The other workers go on: where one of many cores is wanted by somebody else, the rest is still used. A
// busy system may hide that, by taking another core as well.
TEST(ThreadPool, LeavesOutOneWorkerAtATime) {
  const pthread_t caller = pthread_self();
  // The caller waits until a worker has begun a piece, which then takes 40 ms.
  const auto stall = [&](PoolOwner& pool) {
    std::atomic<int> theirs{0};
    pool.run(8, [&](size_t) {
      if (pthread_equal(pthread_self(), caller) == 0) {
        if (theirs.fetch_add(1) == 0) usleep(40000);
      } else {
        const uint64_t end = monotonic_ns() + 100000000;
        while (theirs.load() == 0 && monotonic_ns() < end) std::this_thread::yield();
      }
    });
  };
  // Threads that are in one job at the same time: every piece waits for three others, up to 50 ms.
  const auto team = [](PoolOwner& pool) {
    std::atomic<int> inside{0}, most{0};
    pool.run(4, [&](size_t) {
      const int now = inside.fetch_add(1) + 1;
      int before = most.load();
      while (before < now && !most.compare_exchange_weak(before, now)) {
      }
      const uint64_t end = monotonic_ns() + 50000000;
      while (most.load() < 4 && monotonic_ns() < end) std::this_thread::yield();
      inside.fetch_sub(1);
    });
    return most.load();
  };
  bool all = false, one_less = false;
  for (int attempt = 0; attempt < 50 && !(all && one_less); ++attempt) {
    PoolOwner fresh(4);
    all = all || team(fresh) == 4;
    PoolOwner pool(4);
    stall(pool);
    one_less = one_less || team(pool) == 3;
  }
  EXPECT_TRUE(all);
  EXPECT_TRUE(one_less);
}

TEST(ThreadPool, StartsAndEndsCleanly) {
  for (int i = 0; i < 50; ++i) {
    PoolOwner pool(1 + i % 5);
    if (i % 3 != 0) {
      std::atomic<int> n{0};
      pool.run(10, [&](size_t) { n.fetch_add(1); });
      ASSERT_EQ(n.load(), 10);
    }
    if (i % 7 == 0) usleep(200);
  }
}

TEST(ThreadPool, RefusesNonsense) {
  alignas(64) char memory[4096];
  ThreadPool* pool = reinterpret_cast<ThreadPool*>(memory);
  EXPECT_EQ(ThreadPool::create(memory, 0, &pool), EINVAL);
  EXPECT_EQ(pool, nullptr);
  EXPECT_EQ(ThreadPool::create(memory, -3, &pool), EINVAL);
  EXPECT_EQ(ThreadPool::create(memory, 1 << 20, &pool), EINVAL);
  ThreadPool::destroy(nullptr);
}

TEST(Clock, DoesNotGoBack) {
  const uint64_t a = monotonic_ns();
  usleep(1000);
  const uint64_t b = monotonic_ns();
  EXPECT_GE(b - a, 1000000u);
}

}  // namespace
}  // namespace mamba_edge
