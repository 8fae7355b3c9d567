// Row blocks with like bytes side by side, as the frames of a container may hold them: what varies
// little lies apart from what is noise, and zstd's entropy coding can tell them apart. docs/format.md
// describes the order, docs/decisions/0010-sorted-frames.md why. Portable C++, allocates nothing.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quant/blocks.h"

namespace mamba_edge {

// `from` and `to`: n row blocks, n * shape.row_block_bytes() bytes, which do not overlap. A vector of
// floats has the shape of a matrix of one column.
void sort_row_blocks(const MatrixShape& shape, size_t n, const uint8_t* from, uint8_t* to);
void unsort_row_blocks(const MatrixShape& shape, size_t n, const uint8_t* from, uint8_t* to);

// Bytes of each run of like bytes of n sorted row blocks, from the first to the last. Returns how
// many there are.
constexpr size_t kMostRuns = 4;
size_t sorted_runs(const MatrixShape& shape, size_t n, size_t bytes[kMostRuns]);

}  // namespace mamba_edge
