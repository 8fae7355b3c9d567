// Feeds bytes to everything that reads a GGUF file: directory, metadata, config, names, tokenizer,
// values. Each must either throw Error or succeed, and what was read must not leave the file.
//
// Seeds: tests/data/golden/gguf-*/model.gguf cut to a few kilobytes, or any small GGUF file. Built
// with clang only (MAMBA_EDGE_FUZZ).
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "convert/checkpoint.h"
#include "convert/error.h"
#include "convert/find_tokenizer.h"
#include "convert/gguf_model.h"
#include "convert/names.h"

namespace {

using mamba_edge::convert::Checkpoint;
using mamba_edge::convert::Error;

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

// Its elements lie in the file, so they are few.
void read_everything(const Checkpoint& checkpoint) {
  for (const auto& tensor : checkpoint.tensors()) {
    if (!tensor.readable_as_float) continue;
    checkpoint.read(tensor);
    if (tensor.rows() < 2) continue;
    std::vector<float> row(static_cast<size_t>(tensor.elements() / tensor.rows()));
    checkpoint.read_rows(tensor, tensor.rows() - 1, tensor.rows(), row.data());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const MemoryFile file(data, size);
    const auto checkpoint = Checkpoint::open(file.path());
    if (checkpoint->gguf() == nullptr) return 0;
    read_everything(*checkpoint);
    mamba_edge::ModelConfig any;
    any.n_vocab = 1u << 24;
    find_tokenizer(*checkpoint, {}, &any);
    const auto config = read_gguf_config(*checkpoint);
    name_tensors(*checkpoint, config.model);
  } catch (const Error&) {
  }
  return 0;
}
