#!/usr/bin/env bash
# Makes .venv, the environment that demo.sh and test.sh run in, or brings it up to date after
# setup.py or constraints.txt changed. Does nothing, at once, when it is as they say.
#
#   launch/environment.sh [EXTRA ...]     with these extras of setup.py beside data and dev
#
#   SYNTH2_PYTHON=PYTHON   the interpreter a new .venv is made with; otherwise the first that fits
#                          of python3.11, python3.12, python3.13 and python3
#
# Exit codes: 0 .venv is ready, 2 no Python fits, 1 the installation failed.
set -euo pipefail

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
cd -- "$root"

say() { printf 'launch/environment.sh: %s\n' "$*" >&2; }

# Written last, so that an installation cut short is never taken for a good one: "installing" until
# then. The path is part of it because an environment does not survive being moved.
stamp=.venv/.synth2-installed
wanted="$root $(cat setup.py constraints.txt launch/environment.sh | cksum)"

stamped() { cat "$stamp${1:+-$1}" 2>/dev/null || true; }
ready() {
  local extra
  [[ -x .venv/bin/python && $(stamped) == "$wanted" ]] || return
  for extra in "$@"; do [[ $(stamped "$extra") == "$wanted" ]] || return; done
}
pip_install() {
  .venv/bin/python -m pip install -qq --disable-pip-version-check "$@" >&2 && return
  say "pip could not install the packages; its reason stands above"
  exit 1
}
install() { pip_install -c constraints.txt -e ".[$1]"; }

# Prints the version of an interpreter that fits. It is run, as a name on PATH proves nothing (pyenv
# leaves names that only fail) and Debian's python3 may lack what `-m venv` needs.
fitting_version() {
  local version
  version=$("$1" -c 'import ensurepip, sys, venv; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || return
  case $version in 3.11 | 3.12 | 3.13) printf '%s\n' "$version" ;; *) return 1 ;; esac
}

if ready "$@"; then exit 0; fi

# One installation at a time; a second start waits and then finds it done.
if command -v flock >/dev/null; then
  exec 9>.venv.lock
  if ! flock --nonblock 9; then
    say "waiting for the installation that another start has begun"
    flock 9
  fi
  if ready "$@"; then exit 0; fi
fi

case $(stamped) in
  "" | "$root "*) kept=true ;; # made by hand or out of date: installed over
  *) kept=false ;;             # cut short or moved here: nothing in it can be trusted
esac

if ! $kept || ! fitting_version .venv/bin/python >/dev/null; then
  names=(python3.11 python3.12 python3.13 python3)
  if [[ -n ${SYNTH2_PYTHON:-} ]]; then names=("$SYNTH2_PYTHON"); fi
  python=
  for name in "${names[@]}"; do
    if version=$(fitting_version "$name"); then
      python=$name
      break
    fi
  done
  if [[ -z $python ]]; then
    say "found no fitting Python (tried: ${names[*]}), expected 3.11 to 3.13 with its venv module; name one with SYNTH2_PYTHON=PYTHON"
    exit 2
  fi
  say "making .venv with Python $version ($python)"
  mkdir -p .venv
  printf 'installing\n' >"$stamp"
  find .venv -mindepth 1 -maxdepth 1 ! -path "$stamp" -exec rm -rf {} +
  "$python" -m venv .venv
fi

if ! ready; then
  say "installing the packages of constraints.txt into .venv (3 GB and some minutes the first time)"
  printf 'installing\n' >"$stamp"
  install data,dev
  printf '%s\n' "$wanted" >"$stamp"
fi
for extra in "$@"; do
  if ready "$extra"; then continue; fi
  say "installing the extra $extra into .venv"
  install "$extra"
  if [[ $extra == interop ]]; then
    read -ra alone < <(sed -n 's/^# --no-deps //p' constraints.txt) || true
    if ((${#alone[@]})); then pip_install --no-deps "${alone[@]}"; fi
  fi
  printf '%s\n' "$wanted" >"$stamp-$extra"
done
say "done"
