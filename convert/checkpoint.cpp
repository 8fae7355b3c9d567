#include "convert/checkpoint.h"

#include <algorithm>
#include <map>
#include <string>
#include <system_error>

#include "convert/error.h"
#include "convert/json.h"
#include "convert/safetensors.h"
#include "convert/torch_legacy.h"
#include "convert/torch_zip.h"
#include "engine/container.h"

namespace mamba_edge::convert {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFolderFiles[] = {
    "model.safetensors",        "model.safetensors.index.json",
    "consolidated.safetensors", "consolidated.safetensors.index.json",
    "pytorch_model.bin",        "pytorch_model.bin.index.json",
};
constexpr uint64_t kMaxIndexBytes = uint64_t{64} << 20;
constexpr uint64_t kTarMarkAt = 257;

bool begins_with(const File& file, uint64_t at, std::string_view text) {
  return file.size() >= at + text.size() && file.read_string(at, text.size()) == text;
}

std::vector<TensorInfo> read_directory(const File& file) {
  if (looks_like_zip(file)) return read_torch_zip(file);
  if (looks_like_gguf(file)) throw Error(file.name() + ": is a GGUF file, which is never a shard");
  if (begins_with(file, 0, "version https://git-lfs")) {
    throw Error(file.name() + ": is a Git LFS pointer; fetch the file itself (git lfs pull)");
  }
  if (begins_with(file, sizeof(uint64_t),
                  {format::kMagic, sizeof format::kMagic})) {  // behind the frame's own header
    throw Error(file.name() + ": is converted already; give the checkpoint that it was made of");
  }
  if (begins_with(file, kTarMarkAt, "ustar")) {
    throw Error(file.name() + ": is a tar archive as torch.save wrote before version 0.1.10; " +
                "save it again with a newer torch");
  }
  if (looks_like_safetensors(file) || file.path().extension() == ".safetensors") {
    return std::move(read_safetensors(file).tensors);
  }
  if (looks_like_pickle(file)) return read_torch_legacy(file);
  throw Error(
      file.name() +
      ": is neither a safetensors or GGUF file nor one that torch.save wrote (it may be cut "
      "off)");
}

// The weight_map of an index: tensor name to shard.
std::map<std::string, std::string> read_index(const File& file) {
  if (file.size() > kMaxIndexBytes) throw Error(file.name() + ": is too large for an index");
  const nlohmann::json index = parse_json(file.read_string(0, file.size()), file.name());
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    throw Error(file.name() + ": has no weight_map that says which file holds which tensor");
  }
  std::map<std::string, std::string> shards;
  for (const auto& [name, shard] : index["weight_map"].items()) {
    if (!shard.is_string())
      throw Error(file.name() + ": tensor " + name + ": its file is not text");
    const auto text = shard.get<std::string>();
    if (text.empty() || text == "." || text == ".." ||
        text.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos) {
      throw Error(file.name() + ": tensor " + name + ": " + shard.dump() +
                  " is not a plain file name");
    }
    shards[name] = text;
  }
  if (shards.empty()) throw Error(file.name() + ": its weight_map is empty");
  return shards;
}

fs::path find_in_folder(const fs::path& folder) {
  std::error_code error;
  const auto* const found =
      std::find_if(std::begin(kFolderFiles), std::end(kFolderFiles),
                   [&](const char* name) { return fs::exists(folder / name, error); });
  if (found != std::end(kFolderFiles)) return folder / *found;
  std::vector<std::string> gguf;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    if (entry.path().extension() == ".gguf") gguf.push_back(entry.path().filename().string());
  }
  if (gguf.size() == 1) return folder / gguf[0];
  if (gguf.size() > 1) {
    std::sort(gguf.begin(), gguf.end());
    throw Error(folder.string() + ": holds several GGUF files, such as " + gguf[0] + " and " +
                gguf[1] + "; name the one that is meant");
  }
  std::string looked_for;
  for (const char* name : kFolderFiles) looked_for += std::string(" ") + name;
  throw Error(folder.string() + ": holds no checkpoint; looked for" + looked_for + " *.gguf");
}

}  // namespace

std::unique_ptr<Checkpoint> Checkpoint::open(const fs::path& input) {
  fs::path path = input;
  std::error_code error;
  if (fs::is_directory(input, error)) path = find_in_folder(input);
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint);
  checkpoint->folder_ = path.has_parent_path() ? path.parent_path() : fs::path(".");
  if (path.filename() == "config.json") {
    throw Error(path.string() + ": is the model's description; give the folder that it lies in");
  }
  if (path.extension() == ".json") {
    checkpoint->open_index(path);
  } else {
    checkpoint->open_single(path);
  }
  return checkpoint;
}

void Checkpoint::add_source(const File& file) { sources_.push_back({file.path(), file.size()}); }

// The tensors of one file, which stays open.
std::vector<TensorInfo> Checkpoint::open_tensors(std::unique_ptr<File> file) {
  std::vector<TensorInfo> tensors = read_directory(*file);
  for (TensorInfo& tensor : tensors) tensor.file_index = static_cast<uint32_t>(files_.size());
  add_source(*file);
  files_.push_back(std::move(file));
  return tensors;
}

void Checkpoint::open_single(const fs::path& path) {
  auto file = std::make_unique<File>(path);
  if (looks_like_gguf(*file)) {
    GgufDirectory directory = read_gguf(*file);
    tensors_ = std::move(directory.tensors);
    gguf_ = std::move(directory.metadata);
    add_source(*file);
    files_.push_back(std::move(file));
  } else {
    tensors_ = open_tensors(std::move(file));
  }
  sort_tensors();
}

void Checkpoint::open_index(const fs::path& path) {
  const File index(path);
  add_source(index);
  const std::map<std::string, std::string> shard_of = read_index(index);

  std::vector<std::string> shards;
  for (const auto& [name, shard] : shard_of) shards.push_back(shard);
  std::sort(shards.begin(), shards.end());
  shards.erase(std::unique(shards.begin(), shards.end()), shards.end());
  for (const std::string& shard : shards) {
    for (TensorInfo& tensor : open_tensors(std::make_unique<File>(folder_ / shard))) {
      // A shard may hold more than the index says; where the index names another shard, that one
      // counts.
      const auto known = shard_of.find(tensor.name);
      if (known == shard_of.end() || known->second == shard) tensors_.push_back(std::move(tensor));
    }
  }
  sort_tensors();
  for (const auto& [name, shard] : shard_of) {
    if (find(name) == nullptr) {
      throw Error(index.name() + ": says that " + shard + " holds " + name + ", which it does not");
    }
  }
}

void Checkpoint::sort_tensors() {
  std::sort(tensors_.begin(), tensors_.end(),
            [](const TensorInfo& a, const TensorInfo& b) { return a.name < b.name; });
  const auto twice =
      std::adjacent_find(tensors_.begin(), tensors_.end(),
                         [](const TensorInfo& a, const TensorInfo& b) { return a.name == b.name; });
  if (twice != tensors_.end()) {
    throw Error("tensor " + twice->name + " is both in " + twice->file + " and in " +
                (twice + 1)->file + ", and the index does not say which one counts");
  }
}

const TensorInfo* Checkpoint::find(std::string_view name) const {
  const auto found = std::lower_bound(
      tensors_.begin(), tensors_.end(), name,
      [](const TensorInfo& tensor, std::string_view key) { return tensor.name < key; });
  return found != tensors_.end() && found->name == name ? &*found : nullptr;
}

void Checkpoint::read_rows(const TensorInfo& tensor, int64_t row_begin, int64_t row_end,
                           float* out) const {
  read_tensor_rows(*files_.at(tensor.file_index), tensor, row_begin, row_end, out);
}

std::vector<float> Checkpoint::read(const TensorInfo& tensor) const {
  std::vector<float> out(static_cast<size_t>(tensor.elements()));
  read_rows(tensor, 0, tensor.rows(), out.data());
  return out;
}

bool Checkpoint::same_storage(const TensorInfo& a, const TensorInfo& b) {
  return a.file_index == b.file_index && a.begin == b.begin && a.dtype_name == b.dtype_name &&
         a.shape == b.shape && a.strides == b.strides;
}

}  // namespace mamba_edge::convert
