// Packed weights back to float32, one element or row at a time: the scalar reference, and the
// embedding look-up.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quant/blocks.h"

namespace mamba_edge {

// out[col] = value of (row, col) as it is stored, a rotation not undone, for col in [0, n), n <= shape.cols, row < 16 * shape.row_blocks().
// `data` is the whole matrix as quant/blocks.h lays it out; `scale` is the matrix's own.
void decode_row(const MatrixShape& shape, float scale, const uint8_t* data, uint32_t row,
                uint32_t n, float* out);

}  // namespace mamba_edge
