// The one function of each kernel unit: its table, or NULL where the build lacks the ISA.
#pragma once

#include "platforms/kernels.h"

namespace mamba_edge {

const KernelTable* generic_table();
const KernelTable* sse2_table();
const KernelTable* avx2_table();
const KernelTable* avxvnni_table();
const KernelTable* avx512_table();
const KernelTable* avx512vnni_table();
const KernelTable* amx_table();
const KernelTable* neon_table();
const KernelTable* dotprod_table();
const KernelTable* i8mm_table();

}  // namespace mamba_edge
