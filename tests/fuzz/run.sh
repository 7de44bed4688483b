#!/bin/sh
# run.sh TARGET CORPUS [RUNS]: a repeatable run of a libFuzzer target from a copy of its seed corpus.
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
mkdir "$work/new"
cd "$work" || exit 1
"$1" -seed=1 -runs="${3:-20000}" -max_total_time=20 -rss_limit_mb=2048 -timeout=10 "$work/new" "$2" 2>&1 | tail -30
# The target's own status is lost in the pipe; libFuzzer leaves a file for each find.
set -- "$work"/crash-* "$work"/leak-* "$work"/timeout-* "$work"/oom-*
for find in "$@"; do
  [ -e "$find" ] && { echo "input found: $(od -An -tx1 -v "$find" | head -c 400)"; exit 1; }
done
exit 0
