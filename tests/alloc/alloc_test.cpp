// A thousand steps allocate nothing and, with one thread, ask nothing of the operating system.
//
// This program replaces the allocator and counts its calls; in a child process a seccomp filter
// traps every system call while the steps run. With two threads only the calls that wake and put to
// sleep are let through.
#include <gtest/gtest.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <new>
#include <string>
#include <vector>

#include "engine/include/mamba_edge.h"
#include "tests/engine/model_builder.h"
#include "tests/golden/temporary_folder.h"

namespace {
std::atomic<long> g_allocations{0};
std::atomic<long> g_frees{0};
}  // namespace

// glibc keeps its own allocator under these names.
extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
void __libc_free(void*);

void* malloc(size_t n) {
  ++g_allocations;
  return __libc_malloc(n);
}
void* calloc(size_t n, size_t size) {
  ++g_allocations;
  return __libc_calloc(n, size);
}
void* realloc(void* p, size_t n) {
  ++g_allocations;
  return __libc_realloc(p, n);
}
void* memalign(size_t alignment, size_t n) {
  ++g_allocations;
  return __libc_memalign(alignment, n);
}
void* aligned_alloc(size_t alignment, size_t n) { return memalign(alignment, n); }
int posix_memalign(void** p, size_t alignment, size_t n) {
  *p = memalign(alignment, n);
  return *p == nullptr ? ENOMEM : 0;
}
void free(void* p) {
  ++g_frees;
  __libc_free(p);
}
}  // extern "C"

void* operator new(size_t n) {
  void* p = malloc(n);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}
void* operator new(size_t n, std::align_val_t alignment) {
  void* p = memalign(static_cast<size_t>(alignment), n);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}
void* operator new(size_t n, const std::nothrow_t&) noexcept { return malloc(n); }
void* operator new[](size_t n) { return operator new(n); }
void operator delete(void* p) noexcept { free(p); }
void operator delete(void* p, size_t) noexcept { free(p); }
void operator delete(void* p, std::align_val_t) noexcept { free(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept { free(p); }
void operator delete[](void* p) noexcept { free(p); }
void operator delete[](void* p, size_t) noexcept { free(p); }

namespace mamba_edge::test {
namespace {

constexpr int kSteps = 1000;

struct Case {
  bool mamba2;
  WeightType type;
  int threads;
};

class Allocations : public testing::TestWithParam<Case> {
 protected:
  Allocations() {
    const auto path = folder_.path / "model.mamba";
    ModelConfig config = GetParam().mamba2 ? small_mamba2() : small_mamba1();
    // Wide enough that there are pieces to share out.
    config.d_model = 160;
    config.n_vocab = 700;
    if (GetParam().mamba2) {
      config.mamba2.d_inner = 320;
      config.mamba2.headdim = 80;
    } else {
      config.mamba1.d_inner = 320;
    }
    write_model(path, config, GetParam().type);
    EXPECT_EQ(mamba_edge_model_open(path.c_str(), nullptr, &model_, nullptr), MAMBA_EDGE_OK);
  }
  ~Allocations() override { mamba_edge_model_close(model_); }

  mamba_edge_session* create() const {
    mamba_edge_session_options options = {};
    options.n_threads = GetParam().threads;
    options.chunk = 4;
    mamba_edge_session* session = nullptr;
    EXPECT_EQ(mamba_edge_session_create(model_, &options, nullptr, 0, &session, nullptr),
              MAMBA_EDGE_OK);
    return session;
  }

  TemporaryFolder folder_;
  mamba_edge_model* model_ = nullptr;
};

// Steps with greedy feedback; the number of failures.
int thousand_steps(mamba_edge_session* session) {
  int failures = 0;
  int32_t token = 1;
  for (int i = 0; i < kSteps; ++i) {
    if (mamba_edge_step(session, token, nullptr) != MAMBA_EDGE_OK) ++failures;
    const float* row = mamba_edge_logits(session);
    token = 0;
    for (int32_t v = 1; v < 37; ++v) token = row[v] > row[token] ? v : token;
    token = (token * 7 + i) % 37;
  }
  return failures;
}

TEST(AllocationCounter, Counts) {
  // Through volatile pointers: a compiler may drop a pair of new and delete that it can see.
  const long before = g_allocations;
  int* volatile number = new int(3);
  void* volatile bytes = std::malloc(5);
  const long after = g_allocations;
  delete number;
  std::free(bytes);
  EXPECT_EQ(after, before + 2);
}

TEST_P(Allocations, NoneInAThousandSteps) {
  mamba_edge_session* session = create();
  ASSERT_NE(session, nullptr);
  const long allocations = g_allocations, frees = g_frees;
  EXPECT_EQ(thousand_steps(session), 0);
  const long allocated = g_allocations - allocations, freed = g_frees - frees;
  EXPECT_EQ(allocated, 0);
  EXPECT_EQ(freed, 0);
  // Prompts, states and samplers neither, once they have what they need.
  std::vector<uint8_t> state(mamba_edge_state_bytes(model_));
  std::vector<int32_t> prompt(50, 3);
  std::vector<float> rows(50 * 700);
  mamba_edge_sampler_options sampling = {};
  sampling.temperature = 0.8f;
  sampling.top_k = 20;
  sampling.top_p = 0.9f;
  sampling.repeat_penalty = 1.1f;
  sampling.repeat_last_n = 16;
  std::vector<uint64_t> memory(mamba_edge_sampler_required_bytes(model_, &sampling) / 8 + 1);
  mamba_edge_error error;
  const long start = g_allocations;
  mamba_edge_sampler* sampler = nullptr;
  mamba_edge_status status = mamba_edge_sampler_init(model_, &sampling, memory.data(),
                                                     memory.size() * 8, &sampler, &error);
  if (status == MAMBA_EDGE_OK)
    status = mamba_edge_prefill(session, prompt.data(), 50, rows.data(), &error);
  if (status == MAMBA_EDGE_OK)
    status = mamba_edge_state_save(session, state.data(), state.size(), &error);
  mamba_edge_session_reset(session);
  if (status == MAMBA_EDGE_OK)
    status = mamba_edge_state_load(session, state.data(), state.size(), &error);
  if (status == MAMBA_EDGE_OK) mamba_edge_sample(sampler, mamba_edge_logits(session));
  const mamba_edge_status refused = mamba_edge_step(session, -1, &error);
  const long end = g_allocations;
  EXPECT_EQ(status, MAMBA_EDGE_OK);
  EXPECT_EQ(refused, MAMBA_EDGE_INVALID_ARGUMENT);
  EXPECT_EQ(end - start, 0);
  mamba_edge_session_destroy(session);
}

// ---- system calls

#if defined(__x86_64__)
constexpr uint32_t kArchitecture = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
constexpr uint32_t kArchitecture = AUDIT_ARCH_AARCH64;
#else
constexpr uint32_t kArchitecture = 0;
#endif

// What the child tells its parent, in memory that they share.
struct Verdict {
  std::atomic<int> stage;  // 0: began, 1: the filter is refused, 2: it holds, 3: the steps are done
  std::atomic<int> failures;
  std::atomic<int> calls;      // trapped
  std::atomic<int> last_call;  // its number
  std::atomic<int> probe;      // calls trapped when one was made on purpose
};
Verdict* g_verdict = nullptr;

void on_trap(int, siginfo_t* info, void*) {
  ++g_verdict->calls;
  g_verdict->last_call = info->si_syscall;
}

// Traps everything but the end of a signal handler, the end of the process, and what `threads` need
// to sleep and wake.
bool install_filter(bool with_futex) {
  const auto allow = [](uint32_t number) {
    return std::vector<sock_filter>{BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
                                    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
  };
  std::vector<sock_filter> program = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, arch)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, kArchitecture, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
  };
  std::vector<uint32_t> allowed = {SYS_rt_sigreturn, SYS_exit_group};
  if (with_futex) allowed.push_back(SYS_futex);
  for (const uint32_t number : allowed) {
    for (const sock_filter& line : allow(number)) program.push_back(line);
  }
  program.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP));
  const sock_fprog filter = {static_cast<unsigned short>(program.size()), program.data()};
  return kArchitecture != 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &filter) == 0;
}

TEST_P(Allocations, NoSystemCallsInAThousandSteps) {
  void* shared =
      mmap(nullptr, sizeof(Verdict), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(shared, MAP_FAILED);
  g_verdict = new (shared) Verdict{};
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    alarm(120);
    struct sigaction action = {};
    action.sa_sigaction = on_trap;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGSYS, &action, nullptr);
    mamba_edge_session* session = create();
    if (session == nullptr) _exit(1);
    usleep(200'000);  // a thread that begins has calls of its own to make
    if (!install_filter(GetParam().threads > 1)) {
      g_verdict->stage = 1;
      _exit(0);
    }
    g_verdict->stage = 2;
    g_verdict->failures = thousand_steps(session);
    const int during = g_verdict->calls;
    syscall(SYS_getppid);  // does the trap work at all?
    g_verdict->probe = g_verdict->calls - during;
    g_verdict->calls = during;
    g_verdict->stage = 3;
    _exit(0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  const Verdict& v = *g_verdict;
  ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0)
      << "status " << status << " (31: a worker, which takes no signals, made a system call)";
  if (v.stage == 1)
    GTEST_SKIP()
        << "seccomp filters are refused here (an emulator?); allocations are counted all the same";
  EXPECT_EQ(v.stage, 3);
  EXPECT_EQ(v.probe, 1);
  EXPECT_EQ(v.failures, 0);
  EXPECT_EQ(v.calls, 0) << "the last one has number " << v.last_call;
  munmap(shared, sizeof(Verdict));
}

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (const bool mamba2 : {false, true}) {
    for (const WeightType type : {WeightType::int8, WeightType::f32}) {
      for (const int threads : {1, 2}) cases.push_back({mamba2, type, threads});
    }
  }
  return cases;
}

std::string case_name(const testing::TestParamInfo<Case>& c) {
  return std::string(c.param.mamba2 ? "mamba2_" : "mamba1_") + type_name(c.param.type) +
         "_threads" + std::to_string(c.param.threads);
}

INSTANTIATE_TEST_SUITE_P(All, Allocations, testing::ValuesIn(all_cases()), case_name);

}  // namespace
}  // namespace mamba_edge::test
