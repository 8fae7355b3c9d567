// Chooses a kernel table. Does not read the environment: the tools do, and pass the name on.
//
// The first call asks the OS for AMX (allow_amx in platforms/cpu.h) where the CPU has it; where that
// is refused, the table is not offered.
#pragma once

#include <cstddef>

#include "platforms/kernels.h"

namespace mamba_edge {

// The tables of this build that this CPU can run, best first, "generic" always last. Sets *n.
const KernelTable* const* available_tables(size_t* n);

// All names that exist in any build for this architecture, for messages ("avx512, avx2, sse2,
// generic").
const char* known_isas();

// The names of available_tables() in the same form.
const char* available_isas();

// The table called `isa`, or the best one for NULL and "auto". NULL if there is none of that name
// here.
const KernelTable* select_table(const char* isa);

// The table's product for a type of kQuantisedTypes.
inline MatmulQuantised* quantised_matmul(const KernelTable& table, WeightType type) {
  switch (type) {
    case WeightType::int6:
      return table.matmul_i6_i8;
    case WeightType::int5:
      return table.matmul_i5_i8;
    case WeightType::int4:
      return table.matmul_i4_i8;
    case WeightType::int3:
      return table.matmul_i3_i8;
    case WeightType::int2:
      return table.matmul_i2_i8;
    default:
      return table.matmul_i8_i8;
  }
}

}  // namespace mamba_edge
