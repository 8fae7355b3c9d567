// The tensors that a pickle of torch.save holds.
#pragma once

#include <cstdint>
#include <vector>

#include "convert/file.h"
#include "convert/pickle.h"
#include "convert/tensor.h"

namespace mamba_edge::convert {

struct StateDict {
  std::vector<TensorInfo>
      tensors;  // `begin` counts from the beginning of the storage, file_index is 0
  std::vector<uint32_t> storages;  // [tensors.size()] indices into Pickle::storages
};

// The root itself where it holds tensors, otherwise the dict under "state_dict", "model_state_dict"
// or "model", in this order. Values that are not tensors are ignored. Throws Error when there is no
// such dict or a tensor's key is not text. `file` names the file in errors.
StateDict find_state_dict(const File& file, const Pickle& pickle);

}  // namespace mamba_edge::convert
