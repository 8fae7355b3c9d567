#!/bin/sh
# Builds the library alone as a shared one and does with it what check_install.sh does.
#
#   check_shared.sh SOURCE BUILD CC [CMAKE OPTION...]     BUILD: where to build, kept so that the next time is quick
set -eu
source=$1 build=$2 cc=$3
shift 3
cmake -S "$source" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DMAMBA_EDGE_TOOLS=OFF \
  -DMAMBA_EDGE_TESTS=OFF -DMAMBA_EDGE_WERROR=ON "$@"
cmake --build "$build"
exec sh "$(dirname "$0")/check_install.sh" "$source" "$build" "$cc" "$@"
