#!/bin/sh
# check_unicode_tables.sh TABLES GENERATOR...: fails if GENERATOR would write other tables; 77 (skipped) if it asks
# libraries of another Unicode version than the tables in the tree were made with.
set -eu
tables=$1
shift
new=$(mktemp)
trap 'rm -f "$new"' EXIT
"$@" >"$new"
if [ "$(head -n 1 "$new")" != "$(head -n 1 "$tables")" ]; then
  echo "made with: $(head -n 1 "$tables")"
  echo "here:      $(head -n 1 "$new")"
  exit 77
fi
cmp "$new" "$tables"
