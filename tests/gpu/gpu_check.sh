#!/usr/bin/env bash
# tools/gpu-check with programs on the emulated GPU: it finishes, keeps its report, and stops at the first wrong result.
nibble=$1 checkop=$2 training=$3 probe=$4
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0
problem() {
  printf 'FAILED: %s\n' "$*"
  failures=$((failures + 1))
}

mkdir "$work/bin"
ln -s "$(realpath "$nibble")" "$work/bin/nibble"
printf '#!/bin/sh\nexec %s "$@" --only add --only rmsnorm\n' "$(realpath "$checkop")" >"$work/bin/checkop"
printf '#!/bin/sh\nexec %s "$@" --only llama\n' "$(realpath "$training")" >"$work/bin/gpu_training"
chmod +x "$work/bin/checkop" "$work/bin/gpu_training"

tools/gpu-check --quick --programs "$work/bin" --output "$work/report" >"$work/out" 2>&1 || { problem "it fails"; tail -40 "$work/out"; }
for words in 'emulated GPU' '== ops' 'ok llama' '== matmul' 'tokens/s' 'the report is in'; do
  grep -q "$words" "$work/out" || problem "it does not say: $words"
done
for path in result matmul.results.0.tflops attention.results.0.forward_tflops step.results.0.tokens_per_second generate.results.0.share_of_limit; do
  "$probe" json "$work/report/report.json" $path >/dev/null || problem "report.json has no $path"
done
[ "$("$probe" json "$work/report/report.json" result)" = passed ] || problem "the result is not passed"
grep -q 'limits measured here' "$work/report/report.txt" || problem "report.txt has no tables"

# A wrong result ends it there, and that is what the report says.
printf '#!/bin/sh\necho "add FAILED"\nexit 1\n' >"$work/bin/checkop"
tools/gpu-check --quick --programs "$work/bin" --output "$work/wrong" >"$work/out" 2>&1 && problem "a wrong op is passed over"
grep -q '^FAILED: every op' "$work/out" || problem "the wrong op is not named"
grep -q '== training' "$work/out" && problem "it goes on after a wrong op"
[ "$("$probe" json "$work/wrong/report.json" result)" = failed ] || problem "the report of a failure does not say so"

# One part alone; a word it does not know; no GPU.
tools/gpu-check --quick --only attention --programs "$work/bin" --output "$work/one" >"$work/out" 2>&1 || problem "--only attention fails"
grep -q '== matmul' "$work/out" && problem "--only attention does more"
tools/gpu-check --only everything --programs "$work/bin" >"$work/out" 2>&1
[ $? -eq 2 ] && grep -q 'choose one of' "$work/out" || problem "--only everything is taken"
printf '#!/bin/sh\necho nibble 1\n' >"$work/none"
rm "$work/bin/nibble" && mv "$work/none" "$work/bin/nibble" && chmod +x "$work/bin/nibble"
tools/gpu-check --programs "$work/bin" --output "$work/none" >"$work/out" 2>&1 && problem "it passes without a GPU"
grep -q 'no GPU to check' "$work/out" || problem "it does not say that there is no GPU"

printf '%d problems\n' $failures
[ $failures -eq 0 ]
