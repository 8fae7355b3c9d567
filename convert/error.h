// The one exception of convert/: its message names the file, the thing and what was expected.
#pragma once

#include <stdexcept>

namespace mamba_edge::convert {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace mamba_edge::convert
