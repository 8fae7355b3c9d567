#include "platforms/select.h"

#include <cstdio>
#include <cstring>

#include "platforms/cpu.h"
#include "platforms/tables.h"

namespace mamba_edge {
namespace {

// One row per table of this architecture, best first.
struct Row {
  const char* isa;
  const KernelTable* (*table)();
  bool CpuFeatures::*needs;   // NULL: nothing
  bool (*allow)() = nullptr;  // asks the OS, where the CPU and the build have the rest
};

constexpr Row kRows[] = {
#if defined(__x86_64__)
    {"amx", amx_table, &CpuFeatures::amx, allow_amx},
    {"avx512vnni", avx512vnni_table, &CpuFeatures::avx512_vnni},
    {"avx512", avx512_table, &CpuFeatures::avx512},
    {"avxvnni", avxvnni_table, &CpuFeatures::avx_vnni},
    {"avx2", avx2_table, &CpuFeatures::avx2},
    {"sse2", sse2_table, &CpuFeatures::sse2},
#elif defined(__aarch64__)
    {"i8mm", i8mm_table, &CpuFeatures::i8mm},
    {"dotprod", dotprod_table, &CpuFeatures::dotprod},
    {"neon", neon_table, &CpuFeatures::neon},
#endif
    {"generic", generic_table, nullptr},
};
constexpr size_t kRowCount = sizeof(kRows) / sizeof(kRows[0]);

// Computed once, constant from then on.
struct Available {
  const KernelTable* tables[kRowCount] = {};
  size_t n = 0;
  char names[256] = {};  // of all rows
  char here[256] = {};   // of `tables`

  Available() {
    const CpuFeatures cpu = detect_cpu();
    for (const Row& row : kRows) {
      append(names, row.isa);
      if (row.needs != nullptr && !(cpu.*row.needs)) continue;
      const KernelTable* table = row.table();
      if (table == nullptr || (row.allow != nullptr && !row.allow())) continue;
      tables[n++] = table;
      append(here, row.isa);
    }
  }

 private:
  static void append(char (&list)[256], const char* name) {
    const size_t length = std::strlen(list);
    std::snprintf(list + length, sizeof(list) - length, "%s%s", length == 0 ? "" : ", ", name);
  }
};

const Available& available() {
  static const Available result;
  return result;
}

}  // namespace

const KernelTable* const* available_tables(size_t* n) {
  *n = available().n;
  return available().tables;
}

const char* known_isas() { return available().names; }

const char* available_isas() { return available().here; }

const KernelTable* select_table(const char* isa) {
  const Available& a = available();
  if (isa == nullptr || std::strcmp(isa, "auto") == 0) return a.tables[0];
  for (size_t i = 0; i < a.n; ++i) {
    if (std::strcmp(a.tables[i]->isa, isa) == 0) return a.tables[i];
  }
  return nullptr;
}

}  // namespace mamba_edge
