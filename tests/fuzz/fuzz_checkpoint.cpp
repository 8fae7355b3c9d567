// Feeds bytes to every reader of published files. Whatever they are, each reader must either throw
// Error or succeed; every tensor that it lists must be readable without leaving the file.
//
// Seeds: any checkpoint and config.json. Built with clang only (MAMBA_EDGE_FUZZ).
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "convert/checkpoint.h"
#include "convert/error.h"
#include "convert/hf_config.h"
#include "convert/names.h"

namespace {

using mamba_edge::convert::Checkpoint;
using mamba_edge::convert::Error;

// A stride of 0 lets a small file describe a tensor of any size.
constexpr int64_t kMaxElements = 1 << 16;

// A file without a folder.
class MemoryFile {
 public:
  MemoryFile(const uint8_t* data, size_t size) : descriptor_(memfd_create("fuzz", 0)) {
    if (descriptor_ < 0 || write(descriptor_, data, size) != static_cast<ssize_t>(size)) _exit(1);
  }
  ~MemoryFile() { close(descriptor_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  std::string path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }

 private:
  int descriptor_;
};

void read_everything(const Checkpoint& checkpoint) {
  for (const auto& tensor : checkpoint.tensors()) {
    if (!tensor.readable_as_float || tensor.elements() > kMaxElements) continue;
    checkpoint.read(tensor);
    if (tensor.rows() < 2) continue;
    std::vector<float> row(static_cast<size_t>(tensor.elements() / tensor.rows()));
    checkpoint.read_rows(tensor, tensor.rows() - 1, tensor.rows(), row.data());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using mamba_edge::convert::name_tensors;
  using mamba_edge::convert::parse_published_config;
  try {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    parse_published_config(text, "config.json");
  } catch (const Error&) {
  }
  try {
    static const mamba_edge::ModelConfig config =
        parse_published_config(R"({"d_model":32,"n_layer":2,"vocab_size":277})", "config.json")
            .model;
    const MemoryFile file(data, size);
    const auto checkpoint = Checkpoint::open(file.path());
    read_everything(*checkpoint);
    name_tensors(*checkpoint, config);
  } catch (const Error&) {
  }
  return 0;
}
