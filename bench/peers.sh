#!/usr/bin/env bash
# Other libraries beside raymarch on a GPU: unpacks peers/peers.tar.xz (python -m bench.carry_peers), builds
# nerfacc and tiny-cuda-nn for this GPU without a network, and races them.
#
#   bench/peers.sh build            unpack and build, about five minutes on 16 cores; libraries are copied to $OUT
#   bench/peers.sh run [ARGUMENTS]  python -m bench peers --device cuda --record ARGUMENTS
#
# Libraries built before (nerfacc_cuda.so, _<arch>_C.so) are taken from peers/built/ instead where they lie there.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
SOURCES=$PWD/peers/src
BUILT=$PWD/peers/built
TCNN=$SOURCES/tiny-cuda-nn/bindings/torch
export TORCH_EXTENSIONS_DIR=$PWD/peers/extensions MAX_JOBS=${MAX_JOBS:-$(nproc)}
export PYTHONPATH="$PWD:$SOURCES/nerfacc_source:$SOURCES/nerfstudio_source:$TCNN:$PWD/peers/site${PYTHONPATH:+:$PYTHONPATH}"

architecture() {
  nvidia-smi --query-gpu=compute_cap --format=csv,noheader --id=0 2>/dev/null | tr -d .
}

unpack() {
  if [ ! -d "$SOURCES/tiny-cuda-nn" ]; then
    if [ ! -f peers/peers.tar.xz ]; then
      echo "peers.sh: peers/peers.tar.xz is not here; make it with python -m bench.carry_peers FOLDER" >&2
      return 1
    fi
    mkdir -p "$SOURCES" && tar -xJf peers/peers.tar.xz -C "$SOURCES" || return 1
  fi
  mkdir -p peers/site
  # Newer setuptools have no pkg_resources, of which tiny-cuda-nn's setup.py wants one name.
  "$PYTHON" -c "import pkg_resources" 2>/dev/null ||
    echo "from packaging.version import parse as parse_version" >peers/site/pkg_resources.py
}

# nerfacc compiles itself when first imported, with ninja, into TORCH_EXTENSIONS_DIR.
build_nerfacc() {
  if [ -f "$BUILT/nerfacc_cuda.so" ]; then # what it looks for before it compiles, under another name
    printf 'import sys, torch\nfrom importlib import machinery, util\n%s\n%s\n%s\n' \
      "loader = machinery.ExtensionFileLoader('nerfacc_cuda', '$BUILT/nerfacc_cuda.so')" \
      "sys.modules[__name__] = module = util.module_from_spec(util.spec_from_loader('nerfacc_cuda', loader))" \
      "loader.exec_module(module)" >"$SOURCES/nerfacc_source/nerfacc/csrc.py"
  fi
  local arch
  arch=$(architecture)
  TORCH_CUDA_ARCH_LIST="${arch%?}.${arch: -1}" "$PYTHON" -c "
from nerfacc.cuda._backend import _C
assert _C is not None and hasattr(_C, 'inclusive_sum'), 'nerfacc: its CUDA part is missing'
print('nerfacc:', _C.__file__)"
}

build_tcnn() {
  local arch
  arch=$(architecture)
  mkdir -p "$TCNN/tinycudann_bindings"
  if compgen -G "$BUILT/_*_C*.so" >/dev/null; then
    cp "$BUILT"/_*_C*.so "$TCNN/tinycudann_bindings/"
  else
    (cd "$TCNN" && TCNN_CUDA_ARCHITECTURES=$arch "$PYTHON" setup.py -q build_ext --inplace) || return 1
  fi
  "$PYTHON" -c "import tinycudann; print('tiny-cuda-nn:', tinycudann.modules._C.__file__)"
}

build() {
  unpack || return 1
  if [ -z "$(architecture)" ]; then
    echo "peers.sh: no GPU here, nothing to build for" >&2
    return 1
  fi
  local failed=0
  build_nerfacc >peers/nerfacc.log 2>&1 &
  local first=$!
  build_tcnn >peers/tcnn.log 2>&1 || failed=1
  wait "$first" || failed=1
  tail -n 3 peers/nerfacc.log peers/tcnn.log
  if [ -n "${OUT:-}" ]; then
    cp -f "$TORCH_EXTENSIONS_DIR"/nerfacc_cuda/nerfacc_cuda.so "$OUT/" 2>/dev/null
    for library in "$TCNN"/tinycudann_bindings/_*_C*.so; do
      strip -o "$OUT/$(basename "$library")" "$library" 2>/dev/null
    done
    cp -f peers/nerfacc.log peers/tcnn.log "$OUT/"
  fi
  return "$failed"
}

run() { "$PYTHON" -m bench peers --device cuda --record "$@"; }

case "${1:-}" in
  build) build ;;
  run) shift && run "$@" ;;
  *) echo "peers.sh: build, or run [arguments of python -m bench peers]" >&2 && exit 2 ;;
esac
