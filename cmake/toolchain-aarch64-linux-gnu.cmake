# Cross build for 64-bit Arm Linux with Debian's g++-aarch64-linux-gnu and arm64 -dev packages (multiarch: they lie
# beside this machine's own). `scripts/setup --arm64` installs both.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)

# Tests and tools run in the emulator, with the loader and the C library that the arm64 packages put under /lib. (Not with
# -L /usr/aarch64-linux-gnu: the cross compiler's loader would then load the C library of the arm64 packages, and two
# versions of the pair hang in pthread_create.) The CPU is qemu's "max" unless the environment says otherwise:
#   QEMU_CPU=cortex-a53 ctest --preset linux-arm64
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64-static)
