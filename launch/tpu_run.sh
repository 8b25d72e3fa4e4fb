#!/usr/bin/env bash
set -euo pipefail

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
  cat <<'USAGE'
Usage: launch/tpu_run.sh COMMAND NAME [OPTIONS] [-- [STAGE] ARGUMENTS]

Runs synth2 on every worker of a Cloud TPU, or as several processes of this machine. Needs gcloud.

  create NAME    asks for a TPU VM as a queued resource and waits until it is there
  attach NAME    takes a TPU VM that is there already; only looks and installs, never deletes it
  run NAME       creates what is missing, installs, runs; preempted, it creates it again
  status NAME    what Cloud TPU says of it, and the last lines of each worker
  logs NAME      the logs of the last try; -f follows them
  stop NAME      SIGTERM to the program on all workers: it saves and ends with code 143
  delete NAME    deletes the queued resource and its TPU VM
  local N        N processes on this machine's processor, by the same worker script

  --zone=ZONE --project=PROJECT   where; gcloud's own defaults otherwise
  --type=TYPE                     accelerator type such as v5litepod-256
  --runtime-version=VERSION       software of the VM such as v2-alpha-tpuv5-lite
  --spot | --reserved             on demand otherwise
  --network=NETWORK
  --mount=BUCKET:PATH             mounts a bucket by gcsfuse at PATH on every worker, for the workdir
  --max-retries=10                how often a preempted TPU is created again
  --delete-on-exit                deletes the TPU in the end, whatever happened
  --devices-per-process=1         of `local`
  --logs=DIR                      where logs go; logs/NAME of this repository otherwise
  --dry-run                       prints the gcloud commands and runs none

LIBTPU_INIT_ARGS, where it is set here, is what libtpu is told on the workers in place of
synth2_jax/planning/libtpu_flags.txt.

STAGE is train when it is left out. All workers need one workdir: a path on a file system that all
of them see, such as one that --mount makes.

  launch/tpu_run.sh run pod --zone=us-west4-a --type=v5litepod-256 --spot \
      --runtime-version=v2-alpha-tpuv5-lite --mount=my-bucket:/mnt/runs \
      -- train --config=configs/paper/vlm.py --config.data.source=fake --workdir=/mnt/runs/vlm
  launch/tpu_run.sh local 4 --devices-per-process 2 --config=configs/scenes/vlm.py \
      --config.data.source=fake --workdir=workdir/pod

Exit codes: the program's (0 done, 2 a mistake, never tried again, 143 stopped by SIGTERM), that of
the worker that failed first, or 1 when there is no TPU to be had.
USAGE
}

say() { printf 'tpu_run: %s\n' "$*" >&2; }
fail() {
  say "$*"
  exit 2
}

# --- the command line ---

case ${1:-} in
  create | attach | run | status | logs | stop | delete | local) command=$1 ;;
  "" | -h | --help | help)
    usage
    exit 0
    ;;
  *) fail "found command '$1', expected create, attach, run, status, logs, stop, delete or local (see --help)" ;;
esac
shift
name=${1:-}
case $name in "" | -*) fail "$command: found '${name:-nothing}', expected a NAME (of local: how many processes)" ;; esac
shift

zone='' project='' type='' version='' model='' network='' mount='' logs='' devices=1 retries=10
delete_on_exit=false dry_run=false follow=false
program=()
while [ $# -gt 0 ]; do
  option=$1
  shift
  case $option in
    --devices-per-process | --zone | --project | --type | --runtime-version | --network | --mount | --max-retries | --logs)
      [ $# -gt 0 ] || fail "$option: found nothing behind it, expected a value"
      option="$option=$1"
      shift
      ;;
  esac
  case $option in
    --zone=?*) zone=${option#*=} ;;
    --project=?*) project=${option#*=} ;;
    --type=?*) type=${option#*=} ;;
    --runtime-version=?*) version=${option#*=} ;;
    --spot | --reserved) model=$option ;;
    --network=?*) network=${option#*=} ;;
    --mount=?*:/?*) mount=${option#*=} ;;
    --max-retries=?*) retries=${option#*=} ;;
    --logs=?*) logs=${option#*=} ;;
    --devices-per-process=?*) devices=${option#*=} ;;
    --delete-on-exit) delete_on_exit=true ;;
    --dry-run) dry_run=true ;;
    -f) follow=true ;;
    --)
      program=("$@")
      break
      ;;
    --config | --workdir | --config=* | --config.* | --workdir=* | --verbose)
      program=("$option" "$@")
      break
      ;;
    *) fail "found '$option', expected one of the options in --help, or -- before those of synth2" ;;
  esac
done
for number in "$retries" "$devices"; do
  case $number in *[!0-9]* | '' | 0?* | ??????????*) fail "found '$number', expected a whole number" ;; esac
done
[ "$devices" != 0 ] || fail "--devices-per-process: found 0, expected 1 or more"
case ${program[0]:-} in --*) program=(train "${program[@]}") ;; esac
before=''
for argument in ${program[@]+"${program[@]}"}; do
  case $before in --workdir | -workdir) argument=--workdir=$argument ;; esac
  case ${argument/#--/-} in -workdir=gs://*) fail "$argument: expected a path that every worker sees, such as one of --mount=BUCKET:PATH" ;; esac
  before=$argument
done
case $command in run | local) [ ${#program[@]} -gt 0 ] || fail "$command: found nothing to run, expected -- [STAGE] ARGUMENTS" ;; esac
logs=${logs:-$root/logs/$name}
poll=${SYNTH2_POLL_SECONDS:-10}   # between two looks at a queued resource
grace=${SYNTH2_GRACE_SECONDS:-60} # for workers to end by themselves once another has failed

# shellcheck source=launch/queued_resource.sh
. "$root/launch/queued_resource.sh"

# --- workers ---

pids=()

# By which the workers know each other. They read it from their input: others can see command lines.
secret=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')

# Starts `COMMAND...`; its output goes to worker-I.log of this try and, behind [I], to the terminal.
start_worker() {
  local index=$1 log=$try/worker-$1.log
  shift
  if $dry_run; then "$@" && return; fi
  "$@" <<<"$secret" > >(tee "$log" | sed -u "s/^/[$index] /") 2>&1 &
  pids+=($!)
}

signal_workers() {
  local pid
  for pid in ${pids[@]+"${pids[@]}"}; do kill "-$1" "$pid" 2>/dev/null || true; done
}

running_workers() {
  local pid
  for pid in "${pids[@]}"; do if kill -0 "$pid" 2>/dev/null; then echo "$pid"; fi; done
}

# Waits for all. Sets `code` to that of the worker that failed first, or 0; ends the others then.
wait_for_workers() {
  local index one ended=() deadline=0 stage=wait
  code=0
  while :; do
    for index in "${!pids[@]}"; do
      [ -z "${ended[index]:-}" ] || continue
      if kill -0 "${pids[index]}" 2>/dev/null; then continue; fi
      one=0
      wait "${pids[index]}" || one=$?
      ended[index]=yes
      if [ "$one" != 0 ] && [ "$code" = 0 ]; then
        code=$one
        if [ "$one" != 143 ]; then say "worker $index failed with code $one; its log: $try/worker-$index.log"; fi
        deadline=$((SECONDS + grace))
      fi
    done
    [ "${#ended[@]}" -lt "${#pids[@]}" ] || return 0
    if [ "$code" != 0 ] && [ $SECONDS -ge "$deadline" ]; then
      case $stage in
        wait) stage=term && end_program TERM ;;
        *) end_program KILL ;;
      esac
      deadline=$((SECONDS + grace))
    fi
    sleep 0.2
  done
}

# A new folder for the logs of this try.
next_try() {
  local number=1
  while [ -e "$logs/try-$number" ]; do number=$((number + 1)); done
  try=$logs/try-$number
  $dry_run || mkdir -p "$try"
  pids=()
}

stopped=false
on_signal() {
  stopped=true
  say "stopping the program on all workers; it saves first"
  end_program TERM
}

# --- this machine ---

free_port() {
  local port=8476
  while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
  echo $port
}

run_local() {
  local index port
  case $name in *[!0-9]* | 0* | ??????????*) fail "local: found '$name', expected how many processes" ;; esac
  if [ -z "${SYNTH2_PROGRAM:-}" ]; then "$root/launch/environment.sh"; fi
  next_try
  port=$(free_port)
  end_program() { signal_workers "$1"; }
  trap on_signal INT TERM
  for ((index = 0; index < name; index++)); do
    start_worker "$index" "$root/launch/tpu_worker.sh" "$index" "$name" "127.0.0.1:$port" "$devices" "${program[@]}"
  done
  wait_for_workers
  exit "$code"
}

# --- a TPU ---

# One try on a TPU that is there. Sets `code`.
run_on_tpu() {
  local index addresses=() coordinator words flags
  IFS=';' read -r -a addresses <<<"$(worker_addresses)"
  [ ${#addresses[@]} -gt 0 ] || fail "$name: found no workers"
  coordinator=${addresses[0]}:8476
  install
  next_try
  say "try ${try##*-}: ${#addresses[@]} workers, coordinator $coordinator, logs in $try"
  words=$(printf ' %q' "${program[@]}")
  flags=${LIBTPU_INIT_ARGS+"export LIBTPU_INIT_ARGS=$(printf %q "${LIBTPU_INIT_ARGS-}") && "}
  for index in "${!addresses[@]}"; do
    start_worker "$index" on_worker "$index" \
      "cd synth2_jax && ${flags}exec launch/tpu_worker.sh $index ${#addresses[@]} $coordinator 0$words"
  done
  wait_for_workers
}

# Ends the program on the workers, not only the connections to them.
end_program() {
  on_worker all "kill -$1 \$(cat synth2_jax/.worker.pid) 2>/dev/null || true" </dev/null >/dev/null 2>&1 || true
  if [ "$1" = KILL ]; then signal_workers KILL; fi
}

run() {
  local tries=0
  trap on_signal INT TERM
  while :; do
    ensure_active
    run_on_tpu
    if [ "$code" = 0 ] || [ "$code" = 2 ] || $stopped || ! preempted; then break; fi
    tries=$((tries + 1))
    if [ $tries -gt "$retries" ]; then
      say "preempted $tries times, more than --max-retries=$retries"
      break
    fi
    say "preempted (worker's code $code); creating it again, retry $tries of $retries"
    delete_resource
    sleep "$poll"
  done
  exit "$code"
}

show_logs() {
  local last
  last=$({ find "$logs" -maxdepth 1 -name 'try-*' 2>/dev/null || true; } | sort -V | tail -n 1)
  [ -n "$last" ] || fail "$logs: found no logs, expected those of a run"
  if $follow; then exec tail -n +1 -f "$last"/worker-*.log; fi
  tail -n "${1:-+1}" "$last"/worker-*.log
}

case $command in
  create) trap farewell EXIT && ensure_active ;;
  attach)
    [ "$(node_state)" = READY ] || $dry_run || fail "$name: found no TPU VM that is ready, expected one; create makes one"
    install
    say "$name is ready: launch/tpu_run.sh run $name ..."
    ;;
  run) trap farewell EXIT && run ;;
  status)
    say "queued resource: $(resource_state)"
    say "TPU VM: $(node_state)"
    if [ -d "$logs" ]; then show_logs 3; fi
    ;;
  logs) show_logs ;;
  stop) on_worker all "kill -TERM \$(cat synth2_jax/.worker.pid)" ;;
  delete) delete_resource ;;
  local) run_local ;;
esac
