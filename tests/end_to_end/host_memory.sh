#!/usr/bin/env bash
# Too little host memory for a budget: said before anything is taken, with what is needed and what takes less. And where what is kept
# off the device stands makes no difference to what is trained.
. "${0%/*}/common.sh"

token_config "$work/run.yml" "output_dir: $work/run" "optimizer: paged_adamw_8bit" "resident_optimizer_bytes: 0" "max_steps: 3"
refuses 1 "needs [0-9.]+ MiB of the host's memory" 'host_memory_budget leaves 1\.0 MiB' 'CPU device' 'optimizer moments' \
  'resident_optimizer_bytes' -- train "$work/run.yml" --set host_memory_budget=1MiB
absent "$work/run/adapter_model.safetensors" "$work/run/metrics.jsonl"
succeeds plan "$work/run.yml" --set host_memory_budget=1kB
says out '^note: the run does not fit: this needs .* host_memory_budget leaves 0\.0 MiB'
succeeds plan "$work/run.yml" --set host_memory_budget=1kB --json
equal "fits" "$("$probe" json "$work/out" fits)" false
succeeds plan "$work/run.yml" --json
equal "fits" "$("$probe" json "$work/out" fits)" true
needed=$(for part in peak_bytes pinned_bytes host_bytes; do "$probe" json "$work/out" $part; done | sum)
refuses 1 'host_memory_budget leaves' -- train "$work/run.yml" --set host_memory_budget=$((needed - 1)) --set output_dir="$work/less"
for verb in evaluate generate; do
  arguments=(--data "$work/rows.jsonl")
  [ $verb = evaluate ] || arguments=(--token-ids 5,6,7)
  refuses 1 'host_memory_budget leaves' -- $verb "$models/llama" "${arguments[@]}" --set host_memory_budget=10kB
done

# Just enough, and each way of it, trains the same bytes.
for pinned in auto true false; do
  succeeds train "$work/run.yml" --set output_dir="$work/$pinned" --set pinned=$pinned --set host_memory_budget="$needed"
  cmp "$work/auto/adapter_model.safetensors" "$work/$pinned/adapter_model.safetensors" || problem "pinned: $pinned changes bits"
done
succeeds plan "$work/run.yml" --device rtx-4090 --set pinned=false --set bf16=true
says out '^note: pinned: false: .* pageable host memory' '^note: optimizer: .* at 8\.3 GB/s'
succeeds plan "$work/run.yml" --device rtx-4090 --set bf16=true
says out '^note: optimizer: .* at [1-9][0-9]\.?[0-9]* GB/s'
refuses 2 'pinned' 'auto, true, false' -- train "$work/run.yml" --set pinned=maybe
finish
