#!/bin/sh
# Installs a build under a temporary prefix and uses it from outside as a stranger would: with CMake, with pkg-config
# and a C compiler, and with the installed tools.
#
#   check_install.sh SOURCE BUILD CC [CMAKE OPTION...]
#
# Environment: EMULATOR, the command before a built program; ARCH, the library directory's name ("aarch64-linux-gnu").
set -eu
source=$1 build=$2 cc=$3
shift 3
emulator=${EMULATOR:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
prefix=$work/prefix
fail() { echo "check_install: $*" >&2; exit 1; }

cmake --install "$build" --prefix "$prefix" >"$work/log" || fail "$(cat "$work/log")"
headers=$(cd "$prefix/include" && echo *)
[ "$headers" = mamba_edge.h ] || fail "expected one header, found: $headers"

# CMake. The tree must work wherever it is moved to, so it is.
mv "$prefix" "$work/moved"
prefix=$work/moved
cmake -S "$source/examples/find_package" -B "$work/consumer" -G Ninja -DCMAKE_PREFIX_PATH="$prefix" "$@" \
  >"$work/log" 2>&1 && cmake --build "$work/consumer" >"$work/log" 2>&1 || fail "find_package: $(cat "$work/log")"
version=$($emulator "$work/consumer/consumer") || fail "the consumer does not run"
case $version in "mamba-edge "[0-9]*) ;; *) fail "the consumer printed: $version" ;; esac

# pkg-config and plain C.
pc=$(find "$prefix" -name mamba_edge.pc)
PKG_CONFIG_PATH=$(dirname "$pc")
export PKG_CONFIG_PATH
if [ -n "${ARCH:-}" ]; then export PKG_CONFIG_LIBDIR="/usr/lib/$ARCH/pkgconfig"; fi
[ "mamba-edge $(pkg-config --modversion mamba_edge)" = "$version" ] || fail "pkg-config and the library disagree"
static=--static
if ls "$(dirname "$pc")"/../*.so >/dev/null 2>&1; then
  static=
  LD_LIBRARY_PATH=$(cd "$(dirname "$pc")/.." && pwd)
fi
for example in hello fork_state; do
  # shellcheck disable=SC2046,SC2086
  $cc -std=c99 -Wall -Wextra -Werror -pedantic "$source/examples/$example.c" -o "$work/$example" \
    $(pkg-config --cflags --libs $static mamba_edge)
  status=0
  LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-} $emulator "$work/$example" 2>/dev/null || status=$?
  [ $status -eq 2 ] || fail "$example without arguments: exit status $status, expected 2 (wrong usage)"
done

# A shared library exports the C interface and nothing else.
library=$(find "$prefix" -name 'libmamba_edge.so')
if [ -n "$library" ]; then
  extra=$(nm -D --defined-only "$library" | awk '{ print $3 }' | grep -v '^mamba_edge_' || true)
  [ -z "$extra" ] || fail "exported besides the C interface: $extra"
  nm -D --defined-only "$library" | grep -q ' mamba_edge_step$' || fail "mamba_edge_step is not exported"
fi

# The main job with what was installed.
if [ -x "$prefix/bin/mamba-quantize" ]; then
  $emulator "$prefix/bin/mamba-quantize" "$source/models/mamba2-tiny" -o "$work/tiny.mamba" >"$work/log" 2>&1 ||
    fail "mamba-quantize: $(cat "$work/log")"
  prompt="Once upon a time"
  story=$($emulator "$work/hello" "$work/tiny.mamba" "$prompt") || fail "hello failed"
  case $story in "$prompt"*[a-z]*) ;; *) fail "hello wrote: $story" ;; esac
  [ ${#story} -gt 100 ] || fail "hello wrote only: $story"
  $emulator "$work/fork_state" "$work/tiny.mamba" "$prompt" 3 >"$work/forks" || fail "fork_state failed"
  [ "$(grep -c "^[123]: $prompt" "$work/forks")" -eq 3 ] || fail "fork_state wrote: $(cat "$work/forks")"
  [ "$(grep "^[123]: " "$work/forks" | cut -c 4- | sort -u | wc -l)" -eq 3 ] || fail "three forks, the same text"
fi
echo "installed, found, linked and run: $version"
