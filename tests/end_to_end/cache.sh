#!/usr/bin/env bash
# cache: the quantized cache from one start to the next, of all verbs, of two programs at once, and streaming from it.
. "$(dirname "$0")/common.sh"

cache=$work/cache
units() { find "$cache" -name '*.units' | sort; }
adapter() { cksum <"$1/adapter_model.safetensors"; }

token_config "$work/config.yml" "max_steps: 2"
succeeds train "$work/config.yml" --set output_dir="$work/plain"
want=$(adapter "$work/plain")

# The first start makes one file, the second leaves it alone; both train the same.
succeeds train "$work/config.yml" --set output_dir="$work/first" --set quantized_cache="$cache"
equal "files of the first start" "$(units | wc -l)" 1
made=$(listing "$cache")
succeeds train "$work/config.yml" --set output_dir="$work/second" --set quantized_cache="$cache"
equal "the cache after the second start" "$(listing "$cache")" "$made"
equal "the first start's adapter" "$(adapter "$work/first")" "$want"
equal "the second start's adapter" "$(adapter "$work/second")" "$want"

# evaluate and generate use the same file, and ~ is the home folder.
text_model "$work/text"
HOME=$work succeeds evaluate "$models/llama" --data "$work/rows.jsonl" --set bf16=false --set quantized_cache="~/cache" --report "$work/cached.json"
succeeds evaluate "$models/llama" --data "$work/rows.jsonl" --set bf16=false --report "$work/plain.json"
equal "evaluation" "$("$probe" json "$work/cached.json" loss)" "$("$probe" json "$work/plain.json" loss)"
equal "the cache after an evaluation" "$(listing "$cache")" "$made"
succeeds generate "$work/text" --prompt hello --max-tokens 8 --set bf16=false
cp "$work/out" "$work/answer"
for start in first second; do
  succeeds generate "$work/text" --prompt hello --max-tokens 8 --set bf16=false --set quantized_cache="$cache"
  equal "the answer of the $start start" "$(cat "$work/out")" "$(cat "$work/answer")"
done
equal "a file a model" "$(units | wc -l)" 2

# Two programs that make the same cache at once: both are right, and so is what they leave.
rm -rf "$cache"
for i in 1 2 3 4; do
  "$nibble" train "$work/config.yml" --set output_dir="$work/both-$i" --set quantized_cache="$cache" >"$work/both-$i.log" 2>&1 &
done
wait
for i in 1 2 3 4; do
  equal "the adapter of program $i" "$(adapter "$work/both-$i")" "$want"
  equal "the warnings of program $i" "$(grep -cE '^(warning: .*cache|error)' "$work/both-$i.log")" 0
done
equal "the cache that both made" "$(listing "$cache" | grep units)" "$(grep "$(basename "$(units)")" <<<"$made")"
equal "no leftovers" "$(find "$cache" -name '*.tmp*' | wc -l)" 0

# A first start that is killed leaves what the next one removes; another program's unfinished file stays.
name=$(basename "$(units)")
rm -rf "$cache"/*
left="$cache/$name.tmp-$$-0123456789abcdef" held="$cache/$name.tmp-1-fedcba9876543210" foreign="$cache/another.units.tmp-1"
touch "$left" "$foreign" # a living process has the number of the one that is gone
exec 9> "$held"
flock 9
succeeds train "$work/config.yml" --set output_dir="$work/leftovers" --set quantized_cache="$cache"
absent "$left"
exists "$cache/$name" "$held" "$foreign"
exec 9>&-
rm "$held" "$foreign"

# A pipe in its place is neither waited for nor removed.
kept=$(units)
mv "$kept" "$work/kept"
mkfifo "$kept"
run train "$work/config.yml" --set output_dir="$work/pipe" --set quantized_cache="$cache"
equal "a pipe in the cache's place ends no run" "$status" 0
says err "^warning: .*$kept: is not a regular file"
equal "the adapter without a cache" "$(adapter "$work/pipe")" "$want"
equal "what is there" "$(stat -c %F "$kept")" fifo
mv "$work/kept" "$kept"

# A damaged one is named, and made anew.
printf x | dd of="$(units)" bs=1 seek=5000 conv=notrunc status=none
run train "$work/config.yml" --set output_dir="$work/damaged" --set quantized_cache="$cache"
equal "a damaged cache ends no run" "$status" 0
says err "^warning: the cached weights are of no use, and are made anew: $cache/llama-[0-9a-f]*\.units: .*offset [0-9]+"
equal "the adapter after damage" "$(adapter "$work/damaged")" "$want"
equal "the cache made anew" "$(listing "$cache" | grep units)" "$(grep "$(basename "$(units)")" <<<"$made")"

# With a model that takes its time, if there is one: the second start quantizes nothing. What must be quantized streams
# from the cache alone; what need not be, from the checkpoint as well.
smollm2=${3:-}
if [ -e "$smollm2" ]; then
  succeeds generate "$smollm2" --prompt Hi --max-tokens 1 --set quantized_cache="$cache"
  made=$(listing "$cache") # a fast machine is through before there is progress to tell of
  cp "$work/out" "$work/answer"
  succeeds generate "$smollm2" --prompt Hi --max-tokens 1 --set quantized_cache="$cache"
  equal "lines about quantizing" "$(grep -c quantizing "$work/err")" 0
  equal "the cache after the second start" "$(listing "$cache")" "$made"
  equal "the answer of the second start" "$(cat "$work/out")" "$(cat "$work/answer")"
  streams="--set resident_layers=0 --set weights_from=file"
  refuses 1 'weights_from: file' 'quantized_cache: FOLDER' 'nibble quantize' -- generate "$smollm2" --prompt Hi --max-tokens 1 $streams
  succeeds quantize "$smollm2" --output "$work/nf4"
  for source in "$smollm2 --set quantized_cache=$cache" "$work/nf4"; do
    succeeds generate $source --prompt Hi --max-tokens 1 $streams
    equal "the answer streamed from $source" "$(cat "$work/out")" "$(cat "$work/answer")"
  done
fi
finish
