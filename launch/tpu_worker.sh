#!/usr/bin/env bash
# One process of a run: says who it is by the environment that synth2_jax/distributed.py reads, and becomes synth2.
# launch/tpu_run.sh starts it, on every worker of a TPU and, by `local`, several times on this machine.
#
#   tpu_worker.sh PROCESS_ID NUM_PROCESSES COORDINATOR LOCAL_DEVICES STAGE [ARGUMENT ...]
#
# Reads the secret that all processes of the run share from its standard input.
# LOCAL_DEVICES is how many devices a process makes of this machine's processor, or 0 on a real TPU.
set -euo pipefail

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
id=$1 number=$2 coordinator=$3 local_devices=$4
shift 4

export SYNTH2_COORDINATOR=$coordinator SYNTH2_NUM_PROCESSES=$number SYNTH2_PROCESS_ID=$id
IFS= read -r SYNTH2_SECRET || true
export SYNTH2_SECRET PYTHONUNBUFFERED=1
if [[ $local_devices != 0 ]]; then
  export SYNTH2_NUM_DEVICES=$((number * local_devices))
  export JAX_PLATFORMS=cpu
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$local_devices"
else
  cd -- "$root"
  export LIBTPU_INIT_ARGS=${LIBTPU_INIT_ARGS-$(grep '^--' synth2_jax/planning/libtpu_flags.txt | paste -sd ' ')}
  export TPU_STDERR_LOG_LEVEL=${TPU_STDERR_LOG_LEVEL:-2} # errors and worse, of every worker
  echo $$ >.worker.pid                                   # for `tpu_run.sh stop`
fi
exec "${SYNTH2_PROGRAM:-$root/.venv/bin/synth2}" "$@"
