// The directory of a checkpoint that torch.save wrote before version 1.6: five pickles in a row
// (magic number, protocol version, description of the machine, the object, the list of storage
// keys), then for each key, in the order of that list, an 8-byte element count and the elements.
//
// The tar archives of versions before 0.1.10 are not read.
#pragma once

#include <vector>

#include "convert/file.h"
#include "convert/tensor.h"

namespace mamba_edge::convert {

// Whether the file begins with a pickle.
bool looks_like_pickle(const File& file);

// The tensors of the state dict (see find_state_dict); file_index is 0. Throws Error when anything
// is not as torch wrote it, or was written by a big-endian machine.
std::vector<TensorInfo> read_torch_legacy(const File& file);

}  // namespace mamba_edge::convert
