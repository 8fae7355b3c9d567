#!/bin/sh
# check_symbols.sh <nm> <libmamba_edge_platforms.a>
#
# Code that was compiled with wider -m flags must not leave its unit: where two units define the same weak symbol, the
# linker keeps one, perhaps the one that an older CPU cannot run. So each kernel unit may define exactly one
# symbol that others see, <isa>_table(), and nothing weak, unique or common.
nm=$1
archive=$2
listing=$("$nm" -A -C "$archive") || exit 1
failed=0
units=0
for unit in generic sse2 avx2 avxvnni avx512 avx512vnni amx neon64 dotprod i8mm; do
  symbols=$(printf '%s\n' "$listing" | grep "[:/]$unit\.cpp\.o:") || continue
  units=$((units + 1))
  name=$unit
  [ "$unit" = neon64 ] && name=neon
  # Lower case is local, except weak (v, w), unique (u) and indirect (i). U is a use, not a definition.
  shared=$(printf '%s\n' "$symbols" | sed 's/^.*\.o: *//' | grep -E '^([0-9a-f]+ +)?[A-TV-Zuvwi] ')
  if [ "$(printf '%s\n' "$shared" | sed 's/^[0-9a-f]* *//')" != "T mamba_edge::${name}_table()" ]; then
    echo "$unit.cpp.o shares more or less than ${name}_table():"
    printf '%s\n' "$shared"
    failed=1
  fi
done
if [ "$units" -lt 2 ]; then
  echo "found $units kernel units in $archive"
  failed=1
fi
[ "$failed" -eq 0 ] && echo "$units kernel units, one shared symbol each"
exit "$failed"
