#!/bin/sh
# Fails on an #include against the table in CONTRIBUTING.md.
#
#   check_include_arrows.sh ROOT            checks the tree
#   check_include_arrows.sh --self-test     checks that wrong arrows are found and right ones are not
set -eu

# Reads "file:include line" and prints each wrong arrow. Exit status 1 if there is one.
check() {
  awk '
    function bad(why) { print file ": " target ": " why; wrong = 1 }
    {
      colon = index($0, ":")
      file = substr($0, 1, colon - 1)
      line = substr($0, colon + 1)
      room = file; sub(/\/.*/, "", room)
      if (!match(line, /[<"][^>"]*[>"]/)) next
      target = substr(line, RSTART, RLENGTH)
      inner = substr(target, 2, length(target) - 2)

      if (target ~ /^</) {  # libraries of others
        if (inner ~ /^nlohmann\// && room !~ /^(convert|tools|tests)$/) bad("JSON is for convert and tools")
        if (inner ~ /^CLI\// && room !~ /^(tools|tests)$/) bad("CLI11 is for tools")
        if (inner ~ /^xsimd\// && room !~ /^(platforms|tests|bench)$/) bad("vector code is for platforms")
        if (inner ~ /^zstd/ && room !~ /^(engine|convert|tools|tests|bench)$/) bad("zstd is for the container")
        if (inner ~ /^(utf8proc|pcre2)/ && room != "tests" && file != "tools/gen_unicode_tables.cpp")
          bad("for tests and the generator only")
        if (inner ~ /^(gtest|gmock|benchmark)\// && room !~ /^(tests|bench)$/) bad("for tests and bench only")
        next
      }
      to = inner; sub(/\/.*/, "", to)
      if (inner == "mamba_edge.h") {
        if (room ~ /^(quant|platforms|convert)$/) bad("the public header is for engine and above")
        next
      }
      if (room == "examples") { bad("an example sees mamba_edge.h only"); next }
      if (to !~ /^(quant|platforms|engine|convert|tools|tests|bench)$/ || inner !~ /\//) {
        bad("write it from the root of the repository"); next
      }
      if (room ~ /^(tests|bench)$/) next
      if (to ~ /^(tests|bench)$/) { bad("nothing includes tests or bench"); next }
      if (file == "quant/blocks.h") { bad("blocks.h includes nothing of ours"); next }
      if (room == to || room == "tools") next
      if (room == "platforms" && inner == "quant/blocks.h") next
      if (room == "quant" && to == "platforms") next
      if (room == "engine" && (to == "platforms" || inner ~ /^quant\/(blocks|decode|half|int8_state|sorted)\.h$/)) next
      if (room == "convert" && (to == "quant" || inner ~ /^engine\/(status|config|tensors|container|xxh64|little_endian)\.h$/ ||
                                inner ~ /^engine\/text\// || inner ~ /^platforms\/os\//)) next
      bad(room " may not include this")
    }
    END { exit wrong }'
}

if [ "$1" = --self-test ]; then
  right='quant/blocks.h:#include <cstdint>
platforms/kernels.h:#include "quant/blocks.h"
platforms/simd/a.cpp:  #  include <xsimd/xsimd.hpp>
engine/step.cpp:#include "quant/decode.h"
engine/session.cpp:#include "quant/int8_state.h"
engine/c_api.cpp:#include "mamba_edge.h"
convert/pipeline.cpp:#include "engine/text/tokenizer.h"
tools/common.h:#include "engine/session.h"
tests/engine/a_test.cpp:#include "engine/step.h"
examples/hello.c:#include <mamba_edge.h>'
  wrong='quant/blocks.h:#include "quant/decode.h"
platforms/kernels.h:#include "quant/encode.h"
platforms/kernels.h:#include "engine/status.h"
quant/encode.cpp:#include "engine/config.h"
engine/step.cpp:#include "quant/encode.h"
engine/step.cpp:#include "convert/error.h"
engine/step.cpp:#include "status.h"
engine/step.cpp:#include "../quant/blocks.h"
engine/step.cpp:# include <nlohmann/json.hpp>
engine/step.cpp:#include <xsimd/xsimd.hpp>
convert/names.cpp:#include "engine/step.h"
convert/names.cpp:#include "platforms/kernels.h"
convert/names.cpp:#include "tools/common.h"
tools/common.cpp:#include "tests/engine/helpers.h"
tools/common.cpp:#include <utf8proc.h>
examples/hello.c:#include "engine/step.h"'
  echo "$right" | check || { echo "a right arrow was refused" >&2; exit 1; }
  found=$(echo "$wrong" | check | wc -l) || true
  [ "$found" -eq "$(echo "$wrong" | wc -l)" ] || { echo "$wrong" | check; echo "only $found found" >&2; exit 1; }
  exit 0
fi

cd "$1"
rooms=
for room in quant platforms engine convert tools tests bench examples; do
  [ ! -d $room ] || rooms="$rooms $room"
done
# shellcheck disable=SC2086
grep -rHE '^[[:space:]]*#[[:space:]]*include' --include='*.h' --include='*.c' --include='*.cpp' --include='*.inc' --exclude-dir=node_modules $rooms |
  sort | check
