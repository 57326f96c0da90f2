#!/usr/bin/env bash
# Everything that needs a GPU, in one command: builds the core in place, tests, checks and measures it, and
# writes bench/results/<gpu>.json and .md (copied to $OUT where that is set) after every figure.
#
#   bench/device.sh                   all sections
#   bench/device.sh build tests ops   these, in this order
#
# A section that fails or runs out of time does not stop the others; the exit status says whether any did.
#   LIMIT_<section>   seconds it may take        SCENES          folder with fox_full and chair
#   PYTHON            the interpreter            RAYMARCH_COMMIT what the record calls the sources, without git
#   PEERS             arguments of `python -m bench peers`, as "--no-compile --rows weights,mlp_base"
set -uo pipefail
cd "$(dirname "$0")/.."

export PYTHON=${PYTHON:-python3} PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export RAYMARCH_CUDA=${RAYMARCH_CUDA:-ON}
for folder in shared/scenes ../shared/scenes; do
  if [ -z "${SCENES:-}" ] && [ -d "$folder" ]; then SCENES=$folder; fi
done
export SCENES=${SCENES:-}

declare -A limit=([build]=300 [tests]=480 [checks]=240 [ops]=300 [overhead]=60 [sanitizer]=600 [racecheck]=600 [initcheck]=600 [synccheck]=600
                  [steps]=400 [quality]=1800 [localise]=300 [tcnn]=300 [everything]=600 [scaling]=600
                  [peers_build]=580 [peers]=580 [runs]=900)
default=(build tests checks ops overhead sanitizer steps quality)

build() { "$PYTHON" setup.py -q build_ext --inplace && "$PYTHON" -m raymarch.apps.doctor; }
tests() { "$PYTHON" -m bench.checks tests; }
checks() { "$PYTHON" -m bench.checks equal streams graphs devices; }
ops() { "$PYTHON" -m bench.ops --device cuda --record; }
overhead() { "$PYTHON" -m bench.overhead --device cuda --record; }
sanitizer() { "$PYTHON" -m bench.checks sanitizer; }
racecheck() { "$PYTHON" -m bench.checks racecheck; }
initcheck() { "$PYTHON" -m bench.checks initcheck; }
synccheck() { "$PYTHON" -m bench.checks synccheck; }
tcnn() { "$PYTHON" -m bench.tcnn --record; }
on_scenes() {
  if [ -z "$SCENES" ]; then
    echo "no scenes: set SCENES to the folder that holds fox_full and chair" >&2
    return 1
  fi
  "$PYTHON" -m "$1" "$SCENES"
}
steps() { on_scenes bench.render; }
quality() { on_scenes bench.quality; }
localise() { SCENES=${SCENES:+$SCENES/fox_full} on_scenes bench.localise; }
everything() { "$PYTHON" -m bench --device cuda --only steps,frames,memory,overhead; }
scaling() { "$PYTHON" -m bench scaling --device cuda --out "${OUT:-docs/scaling}"; }
peers_build() { bench/peers.sh build; }
peers() { bench/peers.sh run ${PEERS:-}; }
# Golden frames, chance, long runs: docs/runs.md.
runs() {
  local bad=0
  "$PYTHON" -m bench.golden --device cuda || bad=1
  "$PYTHON" -m bench.spread --device cuda || bad=1
  "$PYTHON" -m bench.long --device cuda || bad=1
  return $bad
}
export -f build tests checks ops overhead sanitizer racecheck initcheck synccheck tcnn on_scenes steps quality localise \
  everything scaling peers_build peers runs

failed=0
summary=()
for section in "${@:-${default[@]}}"; do
  if [ -z "${limit[$section]:-}" ]; then
    echo "device.sh: no section $section; there are ${!limit[*]}" >&2
    exit 2
  fi
  own="LIMIT_$section"
  seconds=${!own:-${limit[$section]}}
  began=$SECONDS
  printf '\n== %s (at most %s s)\n' "$section" "$seconds"
  timeout --kill-after=15 "$seconds" bash -c "$section"
  status=$?
  case $status in
    0) word=ok ;;
    124 | 137) word="out of time" ;;
    *) word="failed ($status)" ;;
  esac
  [ "$status" -eq 0 ] || failed=1
  summary+=("$(printf '%-10s %5d s  %s' "$section" "$((SECONDS - began))" "$word")")
done
printf '\n'
printf '%s\n' "${summary[@]}"
exit "$failed"
