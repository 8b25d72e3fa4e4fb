#!/usr/bin/env bash
# A cloud in $CLOUD, for tests/test_tpu_run.py: `resource` holds the states still to come, `node` that of the VM,
# `next-N` the states after the N-th creation. Workers are folders; ssh runs its command there.
set -eu
echo "$*" >>"$CLOUD/calls"
shift 2
what=$1 verb=$2
case "$what $verb $*" in
  "queued-resources describe "*failedData*) echo "no capacity in this zone" ;;
  "queued-resources describe "*)
    [ -s "$CLOUD/resource" ] || exit 1
    head -n 1 "$CLOUD/resource"
    if [ "$(wc -l <"$CLOUD/resource")" -gt 1 ]; then sed -i 1d "$CLOUD/resource"; fi
    ;;
  "queued-resources create "*)
    number=$(find "$CLOUD" -name 'created-*' | wc -l)
    touch "$CLOUD/created-$number"
    cp "$CLOUD/next-$number" "$CLOUD/resource" 2>/dev/null || echo ACTIVE >"$CLOUD/resource"
    echo READY >"$CLOUD/node"
    ;;
  "queued-resources delete "*) rm -f "$CLOUD/resource" "$CLOUD/node" ;;
  "tpu-vm describe "*ipAddress*) echo "10.0.0.1;10.0.0.2" ;;
  "tpu-vm describe "*) cat "$CLOUD/node" ;;
  "tpu-vm scp "*) for i in 0 1; do mkdir -p "$CLOUD/worker-$i"; cp "$3" "$CLOUD/worker-$i/synth2_jax.tar.gz"; done ;;
  "tpu-vm ssh "*)
    for argument in "$@"; do
      case $argument in --worker=*) worker=${argument#*=} ;; --command=*) text=${argument#*=} ;; esac
    done
    if [ "$worker" != all ]; then cd "$CLOUD/worker-$worker" && WORKER=$worker exec bash -c "$text"; fi
    for i in 0 1; do (cd "$CLOUD/worker-$i" && bash -c "$text"); done
    ;;
esac
