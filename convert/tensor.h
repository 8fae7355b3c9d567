// Where a checkpoint keeps one tensor, and how its values become float32.
//
// A TensorInfo is only made by a format's reader, which has checked that every element lies inside
// the file.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "convert/dtype.h"
#include "convert/file.h"

namespace mamba_edge::convert {

// What a format's name for a number type means. Types that are not floats of the list above can be
// listed, so that an error can name them, but never read.
struct ElementType {
  std::string_view name;
  uint32_t bits = 0;
  bool readable = false;
  DType dtype = DType::f32;  // only where readable
};

struct TensorInfo {
  std::string name;
  std::string dtype_name;  // as the file spells it
  DType dtype = DType::f32;
  bool readable_as_float = false;  // otherwise `dtype` means nothing
  std::vector<int64_t> shape;      // every size >= 0; the product fits an int64_t
  std::vector<int64_t> strides;  // in elements, one per dimension, >= 0; 0 repeats; row-major where
                                 // the type has blocks, which then lie one behind the other
  std::string file;              // for messages
  uint32_t file_index = 0;       // into Checkpoint's open files
  uint64_t begin = 0;            // byte offset in the file of element [0, ..., 0]

  int64_t elements() const;
  int64_t rows() const { return shape.empty() ? 1 : shape[0]; }
};

// Row-major strides of `shape`.
std::vector<int64_t> contiguous_strides(const std::vector<int64_t>& shape);

// The product of `shape`, or -1 where a size is negative or it exceeds 2^59 (so that bytes never
// overflow).
int64_t count_elements(const std::vector<int64_t>& shape);

// "[280, 64]"
std::string shape_text(const std::vector<int64_t>& shape);

// Rows [row_begin, row_end) of dimension 0 as float32, the other dimensions flattened in row-major
// order; a tensor without dimensions has one row of one element. out: [row_end -
// row_begin][elements per row]. f16 and bf16 are exact, f64 is rounded to nearest, blocks are decoded
// as convert/ggml_blocks.h says. Uses at most 1 MiB beside `out`. Thread-safe. Throws Error when the tensor is not a float, the rows do not exist
// or the file cannot be read.
void read_tensor_rows(const File& file, const TensorInfo& tensor, int64_t row_begin,
                      int64_t row_end, float* out);

}  // namespace mamba_edge::convert
