#!/usr/bin/env bash
set -euo pipefail

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
  cat <<'EOF'
Usage: launch/test.sh [--slow] [--interop] [PYTEST ARGUMENTS]

Runs the tests on the CPU. Makes .venv when there is none.

  --slow             the tests marked slow too
  --interop          those that compare with other people's code too, which it installs
  PYTEST ARGUMENTS   such as tests/layers or -k mask; paths start at the repository

Exit codes: pytest's own, or 2 when no Python fits.
EOF
}

left_out=("not slow" "not interop")
extras=()
arguments=()
for argument in "$@"; do
  case $argument in
    -h | --help)
      usage
      exit 0
      ;;
    --slow) unset 'left_out[0]' ;;
    --interop)
      unset 'left_out[1]'
      extras=(interop)
      ;;
    *) arguments+=("$argument") ;;
  esac
done

cd -- "$root"
launch/environment.sh ${extras[@]+"${extras[@]}"}
selection=()
for marks in ${left_out[@]+"${left_out[@]}"}; do
  selection=(-m "${selection[1]:+${selection[1]} and }$marks")
done

# The compilers for TPUs and GPUs, for tests of `synth2 plan`. Aside, for JAX looks for their chips at each start where
# it finds them.
while read -r -a requirements; do
  compiler=.venv/${requirements[0]/==/-}
  find .venv -maxdepth 1 -name "${requirements[0]%%==*}-[0-9]*" ! -path "$compiler" -exec rm -rf {} + # of another jax
  if [[ ! -d $compiler && $(uname -sm) == "Linux x86_64" ]]; then
    half=$(mktemp -d .venv/half.XXXXXX)
    .venv/bin/python -m pip install -qq --disable-pip-version-check --no-deps --target "$half" "${requirements[@]}" </dev/null >&2
    mv -T "$half" "$compiler" || rm -rf "$half" # another start was faster
  fi
done < <(sed -n 's/^# aside //p' constraints.txt)

# The quick tests compile much and compute little: without XLA's optimizations they take a third less.
# With --slow, as in CI, all of them are compiled as users compile.
if [[ " ${left_out[*]-} " == *" not slow "* ]]; then
  export JAX_DISABLE_MOST_OPTIMIZATIONS=${JAX_DISABLE_MOST_OPTIMIZATIONS:-1}
fi

# Two workers: most of the time goes to XLA, which compiles on one core. A file's tests share fixtures.
exec .venv/bin/python -m pytest -n 2 --dist loadfile ${selection[@]+"${selection[@]}"} ${arguments[@]+"${arguments[@]}"}
