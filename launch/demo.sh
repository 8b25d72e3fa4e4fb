#!/usr/bin/env bash
set -euo pipefail

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
  cat <<'EOF'
Usage: launch/demo.sh [--tiny] [--workdir=DIR] [--config=FILE] [--config.KEY=VALUE ...]

Runs the whole of Synth2 on the built-in scenes, from training the tokenizer to the report that
compares captioning with and without synthetic images. Makes .venv when there is none.

  --tiny               smallest models and data: shows that every stage works, not that it helps
  --workdir=DIR        where all goes; given again, a run goes on from where it stopped
                       (default: workdir/demo, with --tiny workdir/demo_tiny)
  --config=FILE        another config (default: configs/scenes/demo.py of this repository)
  --config.KEY=VALUE   changes one value of the config

The last line printed is where the report is.
Exit codes: 0 done, 2 a mistake in the call, 143 stopped by SIGTERM (the same command goes on), 1
anything else.
EOF
}

fail() {
  printf 'launch/demo.sh: %s\n' "$*" >&2
  exit 2
}

config=$root/configs/scenes/demo.py
variant=
workdir=
overrides=()
for argument in "$@"; do
  case $argument in
    -h | --help)
      usage
      exit 0
      ;;
    --tiny) variant=tiny ;;
    --workdir=?*) workdir=${argument#*=} ;;
    --config=?*) config=${argument#*=} ;;
    --config.?*=*) overrides+=("$argument") ;;
    *) fail "found argument '$argument', expected --tiny, --workdir=DIR, --config=FILE or --config.KEY=VALUE (see --help)" ;;
  esac
done
workdir=${workdir:-workdir/demo${variant:+_$variant}}

"$root/launch/environment.sh"
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2} # TensorFlow: warnings, no greetings
# Each step frees its large arrays and takes them again, page by page: huge pages save a tenth of the time.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
if [[ -n $variant ]]; then # A tiny run compiles far more than it computes.
  export XLA_FLAGS=${XLA_FLAGS:---xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true}
fi
exec "$root/.venv/bin/synth2" demo "--config=$config${variant:+:$variant}" "--workdir=$workdir" \
  ${overrides[@]+"${overrides[@]}"}
