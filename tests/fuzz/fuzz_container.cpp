// Feeds bytes to the reader of model files: whatever they are, opening gives an error, or a model
// that takes a step. The checksums of header and directory are made right first, as the work of
// somebody who means harm; those of frames are not.
//
// Seeds: model files of a few kilobytes, stored, compressed and sorted (docs/format.md). Built with clang only
// (MAMBA_EDGE_FUZZ).
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "engine/container.h"
#include "engine/model.h"
#include "engine/session.h"
#include "engine/xxh64.h"

namespace {

using namespace mamba_edge;

// A small file may hold zeros by the gigabyte, which is legal; it only takes the fuzzer's time.
constexpr uint64_t kMaxWeights = 8u << 20, kMaxArena = 32u << 20;

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

template <typename T>
T get(const std::vector<uint8_t>& bytes, size_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

template <typename T>
void set(std::vector<uint8_t>* bytes, size_t at, T value) {
  std::memcpy(bytes->data() + at, &value, sizeof value);
}

// Offsets as in docs/format.md. The file's length is made right, too, as every mutation that
// changes it would end there.
void sign(std::vector<uint8_t>* bytes) {
  if (bytes->size() < format::kHeaderBytes) return;
  const uint64_t size = bytes->size();
  set(bytes, 48, size);
  const auto directory = get<uint64_t>(*bytes, 24);
  if (directory < size) {
    set(bytes, 32, size - directory);
    set(bytes, 40, xxh64(bytes->data() + directory, size - directory));
  }
  set(bytes, format::kHeaderBytes - 8, xxh64(bytes->data(), format::kHeaderBytes - 8));
}

void read_all(const std::string& path) {
  Container container;
  if (!Container::open(path.c_str(), &container).ok()) return;
  uint64_t weights = 0;
  for (uint32_t i = 0; i < container.n_tensors(); ++i) {
    const TensorEntry t = container.tensor(i);
    weights += t.blob.raw_bytes;
    if (container.stored_bytes(t.blob) > container.file_bytes() * (uint64_t{1} + t.blob.n_frames))
      std::abort();
  }
  Blob provenance;
  if (container.find_section("PROV", &provenance) && provenance.raw_bytes < kMaxWeights) {
    std::vector<uint8_t> bytes(provenance.raw_bytes + 1);
    if (container.read_blob(provenance, bytes.data(), "PROV").ok()) {
      size_t sum = 0;
      const Status status = for_each_provenance(
          bytes.data(), provenance.raw_bytes, path.c_str(),
          [](void* to, std::string_view key, std::string_view value) {
            for (const char c : key) *static_cast<size_t*>(to) += static_cast<uint8_t>(c);
            for (const char c : value) *static_cast<size_t*>(to) += static_cast<uint8_t>(c);
          },
          &sum);
      if (!status.ok() && status.message()[0] == '\0') std::abort();
    }
  }
  if (weights > kMaxWeights) return;
  Blob tokenizer;
  if (container.find_section("TOKN", &tokenizer) && tokenizer.raw_bytes > kMaxWeights) return;

  Model model;
  ModelOptions options;
  options.verify = container.fingerprint() % 2 != 0;
  const Status loaded = load_model(path.c_str(), options, &model);
  if (!loaded.ok()) {
    if (std::string_view(loaded.message()).find(path) == std::string_view::npos) std::abort();
    return;
  }
  SessionOptions small;
  small.chunk = 2;
  const size_t bytes = Session::required_bytes(model, small);
  if (bytes > kMaxArena) return;
  void* arena = std::aligned_alloc(kBlockAlign, bytes);
  Session* session = nullptr;
  if (!Session::create(model, small, arena, &session).ok()) std::abort();
  const int32_t tokens[] = {0, static_cast<int32_t>(model.config.n_vocab - 1), 0};
  session->take_tokens(tokens, 3, nullptr);
  std::vector<uint8_t> state(Session::state_bytes(model));
  session->save_state(state.data());
  if (!session->load_state(state.data()).ok()) std::abort();
  session->destroy();
  std::free(arena);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::vector<uint8_t> bytes(data, data + size);
  sign(&bytes);
  const MemoryFile file(bytes.data(), bytes.size());
  read_all(file.path());
  return 0;
}
