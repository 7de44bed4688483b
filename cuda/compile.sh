#!/bin/sh
# compile.sh LOG NVCC ARGUMENT...: runs the CUDA compiler and keeps what it says of registers, shared memory and spills in LOG, for
# tools/check-kernels; warnings and errors go on to the terminal.
log=$1
shift
"$@" >"$log" 2>&1
status=$?
# Of ptxas' own notes only those go on that need somebody's attention.
grep -vE '^ptxas info|^ +[0-9]+ bytes stack frame|^ *$' "$log" >&2
exit $status
