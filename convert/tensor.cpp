#include "convert/tensor.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <numeric>

#include "convert/error.h"
#include "convert/ggml_blocks.h"

namespace mamba_edge::convert {
namespace {

static_assert(std::endian::native == std::endian::little, "values are read in the file's order");

constexpr int64_t kMaxElements = int64_t{1} << 58;  // of at most 16 bytes
constexpr size_t kBlockBytes = size_t{256} << 10;   // converts inside the second-level cache
constexpr size_t kWindowBytes = size_t{512} << 10;  // of a strided tensor
constexpr size_t kGapBytes = 4096;  // reading less than this costs as much as skipping it

size_t element_bytes(DType dtype) { return block_layout(dtype).bytes; }  // without blocks

float from_bf16(uint16_t half) { return std::bit_cast<float>(uint32_t{half} << 16); }

// Without branches, and without float32 subnormals, which are slow. Selects with masks: compilers
// turn ?: back into a branch, and then a loop over this does not become vector code.
float from_f16(uint16_t half) {
  const int32_t magnitude = half & 0x7fff;
  const int32_t normal = (magnitude << 13) + (112 << 23);
  const int32_t subnormal = std::bit_cast<int32_t>(static_cast<float>(magnitude) * 0x1p-24f);
  const int32_t is_subnormal = -static_cast<int32_t>(magnitude < 0x0400);
  const int32_t is_special = -static_cast<int32_t>(magnitude >= 0x7c00);  // infinity, NaN
  const int32_t value =
      (subnormal & is_subnormal) | (normal & ~is_subnormal) | (0x7f800000 & is_special);
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  return std::bit_cast<float>(sign | static_cast<uint32_t>(value));
}

constexpr size_t kStep = 16;  // a fixed count, so that -O2 makes vector code of the inner loop too

template <typename Stored, typename Function>
void convert_block(const char* __restrict bytes, size_t count, float* __restrict out,
                   Function function) {
  size_t i = 0;
  for (; i + kStep <= count; i += kStep) {
    Stored values[kStep];
    std::memcpy(values, bytes + i * sizeof(Stored), sizeof values);
    for (size_t k = 0; k < kStep; ++k) out[i + k] = function(values[k]);
  }
  for (; i < count; ++i) {
    Stored value;
    std::memcpy(&value, bytes + i * sizeof value, sizeof value);
    out[i] = function(value);
  }
}

// bytes: `count` elements of `dtype`, unaligned.
void to_float(DType dtype, const char* bytes, size_t count, float* out) {
  switch (dtype) {
    case DType::f32:
      std::memcpy(out, bytes, count * sizeof(float));
      return;
    case DType::f16:
      return convert_block<uint16_t>(bytes, count, out, from_f16);
    case DType::bf16:
      return convert_block<uint16_t>(bytes, count, out, from_bf16);
    case DType::f64:
      return convert_block<double>(bytes, count, out,
                                   [](double value) { return static_cast<float>(value); });
    default:
      return;  // has blocks: read_blocks
  }
}

void read_contiguous(const File& file, DType dtype, uint64_t begin, size_t count, float* out) {
  if (dtype == DType::f32) return file.read_at(begin, out, count * sizeof(float));
  const size_t bytes = element_bytes(dtype);
  const size_t block = std::min(count, kBlockBytes / bytes);
  const auto buffer = std::make_unique<char[]>(block * bytes);
  for (size_t done = 0; done < count; done += block) {
    const size_t now = std::min(block, count - done);
    file.read_at(begin + done * bytes, buffer.get(), now * bytes);
    to_float(dtype, buffer.get(), now, out + done);
  }
}

// Elements [first, first + count) of blocks that begin at byte `begin`.
void read_blocks(const File& file, DType dtype, uint64_t begin, uint64_t first, uint64_t count,
                 float* out) {
  const BlockLayout layout = block_layout(dtype);
  const size_t step = kBlockBytes / (layout.elements * sizeof(float));
  std::vector<char> blocks(step * layout.bytes);
  std::vector<float> values(step * layout.elements);
  for (const uint64_t end = first + count; first < end;) {
    const uint64_t block = first / layout.elements, skip = first % layout.elements;
    const uint64_t needed = (end - block * layout.elements + layout.elements - 1) / layout.elements;
    const size_t now = std::min<uint64_t>(step, needed);
    file.read_at(begin + block * layout.bytes, blocks.data(), now * layout.bytes);
    decode_blocks(dtype, blocks.data(), now, values.data());
    const uint64_t n = std::min<uint64_t>(end - first, now * layout.elements - skip);
    out = std::copy_n(values.data() + skip, n, out);
    first += n;
  }
}

struct Dimension {
  int64_t size;
  int64_t stride;      // in the file, elements
  int64_t out_stride;  // in `out`, elements
};

// Visits the elements in the order in which the file has them (as far as strides can tell), through
// a window that only moves when an element lies outside it.
class StridedReader {
 public:
  StridedReader(const File& file, DType dtype, uint64_t begin, std::vector<Dimension> dimensions)
      : file_(file),
        dtype_(dtype),
        bytes_(element_bytes(dtype)),
        dimensions_(std::move(dimensions)),
        begin_(begin),
        dense_bytes_(bytes_),
        window_(std::make_unique<char[]>(kWindowBytes)) {
    std::stable_sort(dimensions_.begin(), dimensions_.end(),
                     [](const auto& a, const auto& b) { return a.stride > b.stride; });
    uint64_t span = bytes_;  // from the first to behind the last element of the dimensions so far
    bool dense = true;
    for (size_t d = dimensions_.size(); d-- > 0;) {
      const uint64_t stride = static_cast<uint64_t>(dimensions_[d].stride) * bytes_;
      dense = dense && stride <= span + kGapBytes;
      span += static_cast<uint64_t>(dimensions_[d].size - 1) * stride;
      if (dense) dense_bytes_ = std::min<uint64_t>(span, kWindowBytes);
    }
    end_ = begin + span;
  }

  void read(float* out) {
    std::vector<int64_t> index(dimensions_.size(), 0);
    int64_t from = 0;
    int64_t to = 0;
    for (;;) {
      to_float(dtype_, element(begin_ + static_cast<uint64_t>(from) * bytes_), 1, out + to);
      size_t d = dimensions_.size();
      while (d > 0) {
        const Dimension& dimension = dimensions_[--d];
        from += dimension.stride;
        to += dimension.out_stride;
        if (++index[d] < dimension.size) break;
        from -= dimension.stride * dimension.size;
        to -= dimension.out_stride * dimension.size;
        index[d] = 0;
        if (d == 0) return;
      }
    }
  }

 private:
  const char* element(uint64_t at) {
    if (at < window_begin_ || at + bytes_ > window_end_) {
      window_begin_ = at;
      window_end_ = std::min(end_, at + dense_bytes_);
      file_.read_at(at, window_.get(), window_end_ - window_begin_);
    }
    return window_.get() + (at - window_begin_);
  }

  const File& file_;
  DType dtype_;
  size_t bytes_;
  std::vector<Dimension> dimensions_;
  uint64_t begin_;
  uint64_t end_ = 0;      // behind the last element
  uint64_t dense_bytes_;  // how far the window reaches: over small gaps, never over large ones
  std::unique_ptr<char[]> window_;
  uint64_t window_begin_ = 0;
  uint64_t window_end_ = 0;
};

}  // namespace

int64_t TensorInfo::elements() const { return count_elements(shape); }

std::vector<int64_t> contiguous_strides(const std::vector<int64_t>& shape) {
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t d = shape.size(); d-- > 1;) {
    strides[d - 1] = strides[d] * std::max<int64_t>(shape[d], 1);
  }
  return strides;
}

int64_t count_elements(const std::vector<int64_t>& shape) {
  // A size of zero anywhere makes the product zero, but the other sizes must still be sane: strides
  // use them.
  int64_t product = 1;
  bool empty = false;
  for (const int64_t size : shape) {
    if (size < 0) return -1;
    empty = empty || size == 0;
    if (__builtin_mul_overflow(product, std::max<int64_t>(size, 1), &product)) return -1;
    if (product > kMaxElements) return -1;
  }
  return empty ? 0 : product;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t d = 0; d < shape.size(); ++d) {
    if (d > 0) text += ", ";
    text += std::to_string(shape[d]);
  }
  return text + "]";
}

void read_tensor_rows(const File& file, const TensorInfo& tensor, int64_t row_begin,
                      int64_t row_end, float* out) {
  const std::string what = tensor.file + ": tensor " + tensor.name;
  if (!tensor.readable_as_float) {
    throw Error(what + " holds " + tensor.dtype_name +
                "; weights must be float32, float16, bfloat16 or float64");
  }
  if (row_begin < 0 || row_end < row_begin || row_end > tensor.rows()) {
    throw Error(what + ": rows " + std::to_string(row_begin) + " to " + std::to_string(row_end) +
                " do not exist, its shape is " + shape_text(tensor.shape));
  }
  std::vector<int64_t> shape = tensor.shape;
  if (!shape.empty()) shape[0] = row_end - row_begin;
  const int64_t count = row_begin == row_end ? 0 : count_elements(shape);
  if (count == 0) return;
  const int64_t row_stride = shape.empty() ? 0 : tensor.strides[0];
  const uint64_t first = static_cast<uint64_t>(row_begin) * static_cast<uint64_t>(row_stride);
  if (is_blocked(tensor.dtype)) {
    return read_blocks(file, tensor.dtype, tensor.begin, first, static_cast<uint64_t>(count), out);
  }
  const uint64_t begin = tensor.begin + first * element_bytes(tensor.dtype);

  const std::vector<int64_t> wanted = contiguous_strides(shape);
  std::vector<Dimension> dimensions;
  bool contiguous = true;
  for (size_t d = 0; d < shape.size(); ++d) {
    if (shape[d] == 1) continue;
    contiguous = contiguous && wanted[d] == tensor.strides[d];
    dimensions.push_back({shape[d], tensor.strides[d], wanted[d]});
  }
  if (contiguous) {
    read_contiguous(file, tensor.dtype, begin, static_cast<size_t>(count), out);
  } else {
    StridedReader(file, tensor.dtype, begin, std::move(dimensions)).read(out);
  }
}

}  // namespace mamba_edge::convert
