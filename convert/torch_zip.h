// The directory of a checkpoint that torch.save wrote since version 1.6: a zip archive with the
// records <root>/data.pkl, <root>/data/<key> (one storage each) and, since 2.1, <root>/byteorder.
//
// Reads stored records only, which is what torch writes, also those of ZIP64 archives. Does not
// verify the CRCs: torch can be told not to compute them, and they would cost a second pass over
// the file.
#pragma once

#include <vector>

#include "convert/file.h"
#include "convert/tensor.h"

namespace mamba_edge::convert {

// Whether the file begins with a zip archive's local header.
bool looks_like_zip(const File& file);

// The tensors of the state dict (see find_state_dict); file_index is 0. Throws Error when the
// archive, its pickle or the size of a storage is not as torch writes it.
std::vector<TensorInfo> read_torch_zip(const File& file);

}  // namespace mamba_edge::convert
