#!/usr/bin/env bash
# What nibble says of itself, and to words it does not know.
. "$(dirname "$0")/common.sh"

succeeds
lines=$(wc -l <"$work/out")
longest=$(awk '{ if (length($0) > n) n = length($0) } END { print n }' "$work/out")
[ "$lines" -le 24 ] || problem "nibble alone prints $lines lines, more than a screen's 24"
[ "$longest" -le 100 ] || problem "nibble alone prints a line of $longest columns, more than 100"
says out 'nibble plan' 'nibble train' 'nibble chat'
[ -s "$work/err" ] && problem "nibble alone writes to stderr"
screen=$(cat "$work/out")

succeeds --help
equal "--help" "$(cat "$work/out")" "$screen"
succeeds -h
equal "-h" "$(cat "$work/out")" "$screen"
succeeds --version
says out '^nibble [0-9]+\.[0-9]+\.[0-9]+$' 'oneDNN|own' '^GPU support: (CUDA [0-9]+\.[0-9]+|built without CUDA)$'
# A program with the CUDA device says which GPU it would take, or why none; one without has said it all.
grep -q '^GPU support: CUDA' "$work/out" && says out "^this machine's GPU: (none to use: .+|.+ MiB, products by .+)$"

succeeds help
verbs="train plan quantize evaluate generate chat tokenize inspect"
for verb in $verbs; do
  succeeds help
  says out "^ +$verb "
  succeeds help "$verb"
  says out '^  --set KEY=VALUE' "^usage: nibble $verb " '^example: nibble '"$verb|\| nibble $verb"
  text=$(cat "$work/out")
  succeeds "$verb" --help
  equal "$verb --help" "$(cat "$work/out")" "$text"
done

# Every key of the table is in the help, and each has its own page.
succeeds help config
keys=$(grep -oE '^ *[a-z][a-z0-9_]+' "$work/out" | tr -d ' ' | sort -u)
for key in base_model learning_rate lora_r sample_packing save_total_limit threads; do
  grep -qx "$key" <<<"$keys" || problem "nibble help config does not list $key"
  succeeds help config "$key"
  says out "$key"
done

# The manual page has every verb and key.
succeeds help manual
says out '^\.TH NIBBLE 1' '^\.SH EXIT STATUS'
for verb in $verbs bench; do says out "^\.SS nibble $verb"; done
says out 'learning.*rate'

# Words it does not know: exit 2, and the nearest one it knows.
refuses 2 'trian' 'train' -- trian config.yml
refuses 2 'zzzzzz' 'nibble help' -- zzzzzz
refuses 2 '--promt' '--prompt' -- generate "$models/llama" --promt hello
refuses 2 '--zzzzzz' 'nibble help generate' -- generate "$models/llama" --zzzzzz
refuses 2 'no help on' 'lists the verbs' -- help zzzzzz
refuses 2 'learning_rat' 'learning_rate' -- help config learning_rat
refuses 2 'needs CONFIG' 'example' -- train
refuses 2 'needs MODEL' 'example' -- generate
refuses 2 'takes one CONFIG' -- train a.yml b.yml
refuses 2 '--max-tokens' 'whole number' -- generate "$models/llama" --token-ids 1 --max-tokens many
refuses 2 '--temperature' 'outside' -- generate "$models/llama" --token-ids 1 --temperature -1
for verb in quantize tokenize inspect; do
  refuses 2 'set foo' 'unknown key' -- "$verb" "$models/llama" $([ $verb = quantize ] && echo --output "$work/q") --set foo=1
done
refuses 2 'load_in_4bit' -- quantize "$models/llama" --output "$work/q" --set load_in_4bit=false
refuses 2 '--data' 'needs' -- evaluate "$models/llama"
refuses 2 'needs one of' -- generate "$models/llama"
refuses 2 'key=value' -- generate "$models/llama" --token-ids 1 --set bf16
refuses 2 'bf61' 'bf16' -- generate "$models/llama" --token-ids 1 --set bf61=false
refuses 2 'learning_rate' -- generate "$models/llama" --token-ids 1 --set learning_rate=1
refuses 2 'given twice' -- evaluate "$models/llama" --data a --data b
refuses 2 'takes no value' -- generate "$models/llama" --prompt a --raw=1

# What does not fit onto the disk is not done, also where stdout buffers it.
checks=$((checks + 1))
"$nibble" help config >/dev/full 2>"$work/err" && problem "help config > /dev/full exits 0"
grep -q '^error: .*No space left' "$work/err" || problem "help config > /dev/full: no error line"

finish
