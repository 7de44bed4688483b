#!/usr/bin/env bash
# Limits that the system sets around the program, of address space and of a control group: a run that needs more says so and is not
# killed, and one that needs less trains. Skipped (77) where none can be set: in a build with sanitizers, without rights to make a
# control group.
. "${0%/*}/common.sh"

# The tiny model on many long rows at a time, nothing of it left to choose: hundreds of MiB, of which none is to be touched.
token_config "$work/run.yml" "output_dir: $work/run" "max_steps: 1"
large="--set micro_batch_size=64 --set sequence_len=2048 --set gradient_checkpointing=false --set mlp_chunk_tokens=0"
succeeds plan "$work/run.yml" $large --json
needed=$("$probe" json "$work/out" peak_bytes)
equal "more than 256 MiB are needed" "$((needed > 256 << 20))" 1

# within COMMAND...: $nibble, until the next call, is the program started by this command.
program=$nibble
within() {
  printf '#!/usr/bin/env bash\n%s\nexec %q "$@"\n' "$1" "$program" >"$work/within"
  chmod +x "$work/within"
  nibble=$work/within
}

if [ "$needed" -gt $((256 << 20)) ]; then
  within "ulimit -v $((needed / 1024))"
  if ! "$nibble" --version >/dev/null 2>&1; then
    echo "skipped: the program does not start within $needed bytes of address space"
    exit 77
  fi
  refuses 1 "needs [0-9.]+ MiB of the host's memory" 'CPU device' 'ulimit -v' 'leaves [0-9.]+ MiB' 'sequence_len' -- \
    train "$work/run.yml" $large
  succeeds train "$work/run.yml"
fi

# A control group of our own, below ours in whichever hierarchy has the memory controller.
group=
cleanup() {
  [ -z "$group" ] || rmdir "$group" 2>/dev/null
  rm -rf "$work"
}
trap cleanup EXIT
make_group() {
  local at file
  for at in /sys/fs/cgroup/memory /sys/fs/cgroup; do
    for file in memory.limit_in_bytes memory.max; do
      if mkdir "$at/nibble-test-$$" 2>/dev/null; then
        group=$at/nibble-test-$$
        [ -f "$group/$file" ] && echo $((192 << 20)) >"$group/$file" 2>/dev/null && return 0
        rmdir "$group"
        group=
      fi
    done
  done
  return 1
}
if ! make_group; then
  echo "skipped: no control group with the memory controller can be made here"
  [ "$failures" -eq 0 ] || finish
  exit 77
fi
within "echo \$\$ >$group/cgroup.procs || exit 99"
refuses 1 "needs [0-9.]+ MiB of the host's memory" 'CPU device' "memory.max" 'leaves 1[0-9]{2}\.[0-9] MiB' -- \
  train "$work/run.yml" $large --set output_dir="$work/grouped"
succeeds train "$work/run.yml" --set output_dir="$work/small"
exists "$work/small/adapter_model.safetensors"
finish
