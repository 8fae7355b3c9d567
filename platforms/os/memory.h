// Large pieces of memory, straight from the operating system.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mamba_edge {

// `bytes` zeroed bytes, private to the process, aligned to a page (to 2 MiB when there are that
// many, with the advice to back them by huge pages). Pages are taken on first touch. NULL when the
// system refuses, or bytes is 0.
void* memory_allocate(size_t bytes);

// Gives back what memory_allocate returned for the same number of bytes. NULL is allowed.
void memory_free(void* memory, size_t bytes);

// Bytes of memory that this process may have at most: the machine's, or its control group's limit.
// 0: unknown.
uint64_t memory_total();

// Bytes that could be taken now without swapping. 0: unknown.
uint64_t memory_available();

size_t memory_page_size();

}  // namespace mamba_edge
