#!/usr/bin/env bash
# The benchmarks as a user runs them: on the CPU, in their small sizes; what they say is read, not judged.
. "$(dirname "$0")/common.sh"

# number PATH: the value in $work/out's JSON is a number above zero.
number() {
  local value
  value=$("$probe" json "$work/out" "$1") || problem "no $1 in the JSON of: $command_line"
  [[ $value =~ ^[0-9.e+-]+$ ]] && [[ ! $value =~ ^(0|0\.0*|-.*)$ ]] || problem "$1 is \"$value\": $command_line"
}

for what in matmul attention; do
  succeeds bench $what --device cpu --quick
  says out 'limits measured here: copy .* GB/s' 'TFLOP/s'
  succeeds bench $what --device cpu --quick --json
  equal "benchmark" "$("$probe" json "$work/out" benchmark)" $what
  number copy_gb_per_second
  number product_tflops
done
number results.0.forward_tflops

# A shape alone gets random weights; what it takes is what was planned.
cp "$models/llama/config.json" "$work/shape.json"
for recompute in true attention false auto; do
  succeeds bench step --device cpu --quick --json --model "$work/shape.json" --recompute $recompute
  number results.0.tokens_per_second
  number results.0.loss
  equal "peak, $recompute" "$("$probe" json "$work/out" results.0.peak_bytes)" "$("$probe" json "$work/out" results.0.planned_bytes)"
done
succeeds bench step --device cpu --quick --model "$models/llama" --tokens 40 --micro-batch 2 --steps 2
says out '40 x 2 +true +[0-9.]+ tokens/s' '40 x 2 +auto '
succeeds bench generate --device cpu --quick --json --model "$work/shape.json"
number results.0.tokens_per_second

# A ladder of settings that each save memory and change no bit (the benchmark itself refuses another loss).
rungs=9 # all but pinned: false, which only a GPU tells from true, and either weights_from: file or accumulation_order: layer_major
ladder() { # ladder RUN...: what each rung of one length says, given the rungs' places in the results
  for rung in "$@"; do
    equal "peak of rung $rung" "$("$probe" json "$work/out" results.$rung.peak_bytes)" "$("$probe" json "$work/out" results.$rung.planned_bytes)"
    equal "loss of rung $rung" "$("$probe" json "$work/out" results.$rung.loss)" "$("$probe" json "$work/out" results.$1.loss)"
    number results.$rung.host_peak_bytes
    [ "$rung" -eq "$1" ] || [ "$("$probe" json "$work/out" results.$rung.settings)" = "+ layer-major" ] || [ "$("$probe" json "$work/out" results.$rung.peak_bytes)" -le "$("$probe" json "$work/out" results.$((rung - 1)).peak_bytes)" ] ||
      problem "rung $rung takes more than the one before"
  done
}
succeeds bench memory --device cpu --quick --json --tokens 48,96 --model "$work/shape.json" --csv "$work/memory.csv" --svg "$work/memory.svg"
ladder $(seq 0 $((rungs - 1)))
ladder $(seq $rungs $((2 * rungs - 1)))
equal "the second length" "$("$probe" json "$work/out" results.$rungs.tokens)" 96
equal "lines of memory.csv" "$(wc -l <"$work/memory.csv")" $((2 * rungs + 1))
equal "fields of its lines" "$(awk -F, '{ print NF }' "$work/memory.csv" | sort -u)" 9
grep -q '^<svg' "$work/memory.svg" && [ "$(grep -c '<circle' "$work/memory.svg")" -eq $((2 * rungs)) ] || problem "memory.svg draws not a point for each run"
equal "lines between the points" "$(grep -c 'stroke-width="2"' "$work/memory.svg")" $rungs

# The same of a configuration: its model and adapter, its kind of moments, a quarter, half and all of its length; its data stays unread.
token_config "$work/config.yml" "optimizer: adamw_torch"
sed 's/^sequence_len: .*/sequence_len: 64/' "$work/config.yml" >"$work/bench.yml"
rm "$work/rows.jsonl"
succeeds bench memory "$work/bench.yml" --device cpu --quick --json --steps 1
ladder $(seq 0 $((rungs - 1)))
equal "the third length" "$("$probe" json "$work/out" results.$((2 * rungs)).tokens)" 64
equal "the model" "$("$probe" json "$work/out" results.0.model)" llama
refuses 2 'CONFIG' '--model' -- bench step "$work/bench.yml"
refuses 2 'one number' -- bench step --model "$work/shape.json" --tokens 32,64
refuses 2 '--tokens' '2 to' -- bench memory --tokens 32,

refuses 2 'stpe' 'step' -- bench stpe
refuses 2 'zzzzzz' 'matmul' -- bench zzzzzz
refuses 2 '--model' -- bench step
refuses 2 '--model' -- bench generate
refuses 2 '--device gpu' 'cuda' -- bench matmul --device gpu
refuses 2 '--write' 'GPU' -- bench matmul --device cpu --quick --json --write
refuses 2 'gradient_checkpointing' 'attention' -- bench step --model "$work/shape.json" --recompute some --device cpu
refuses 1 'missing.json' -- bench step --model "$work/missing.json" --device cpu

finish
