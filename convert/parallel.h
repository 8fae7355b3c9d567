// Work for a few threads.
#pragma once

#include <cstddef>
#include <functional>

namespace mamba_edge::convert {

// Calls work(i) for i in [0, n) on `threads` threads; rethrows the first exception.
void parallel_for(int threads, size_t n, const std::function<void(size_t)>& work);

}  // namespace mamba_edge::convert
