// How these tests were built: some take minutes where everything is slower.
#pragma once

namespace mamba_edge::test {

constexpr bool kEmulated = sizeof(MAMBA_EDGE_EMULATOR) > 1;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif
#else
constexpr bool kSanitized = false;
#endif
constexpr bool kSlow = kEmulated || kSanitized;

}  // namespace mamba_edge::test
