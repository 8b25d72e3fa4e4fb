# What launch/tpu_run.sh asks of Cloud TPU. Sourced by it, which sets the variables.
#
# A queued resource goes CREATING -> WAITING_FOR_RESOURCES -> PROVISIONING -> ACTIVE; it ends FAILED, or, preempted,
# SUSPENDING -> SUSPENDED. One that has ended serves no more, but counts against the quota until it is deleted.
# shellcheck shell=bash disable=SC2154

cloud() {
  local where=()
  if [ -n "$zone" ]; then where+=("--zone=$zone"); fi
  if [ -n "$project" ]; then where+=("--project=$project"); fi
  if $dry_run; then
    printf '%q ' gcloud compute tpus "$@" ${where[@]+"${where[@]}"} | sed 's/ $//' >&3
    echo >&3
  else
    gcloud compute tpus "$@" ${where[@]+"${where[@]}"}
  fi
}
exec 3>&1 # dry-run commands, also from inside $(...)

# "" when there is none.
resource_state() { cloud queued-resources describe "$name" '--format=value(state.state)' 2>/dev/null || true; }
node_state() { cloud tpu-vm describe "$name" '--format=value(state)' 2>/dev/null || true; }

worker_addresses() {
  if $dry_run; then
    cloud tpu-vm describe "$name" '--format=value(networkEndpoints[].ipAddress)'
    echo ADDRESS_OF_WORKER_0
  else
    cloud tpu-vm describe "$name" '--format=value(networkEndpoints[].ipAddress)'
  fi
}

on_worker() { cloud tpu-vm ssh "$name" "--worker=$1" "--command=$2"; }

create_resource() {
  local more=()
  [ -n "$type" ] || fail "$name does not exist; to create it: found no --type=TYPE, such as v5litepod-256"
  [ -n "$version" ] || fail "$name does not exist; to create it: found no --runtime-version=VERSION, such as v2-alpha-tpuv5-lite"
  if [ -n "$model" ]; then more+=("$model"); fi
  if [ -n "$network" ]; then more+=("--network=$network"); fi
  say "asking for $name: $type ${model:---on-demand}"
  cloud queued-resources create "$name" "--node-id=$name" "--accelerator-type=$type" \
    "--runtime-version=$version" ${more[@]+"${more[@]}"}
}

delete_resource() {
  # --force deletes the TPU VM with it.
  cloud queued-resources delete "$name" --force --quiet
}

# Returns when the TPU is there: one that exists already, or that is asked for and waited for.
ensure_active() {
  local state told=unknown
  if $dry_run; then
    resource_state
    create_resource
    resource_state
    return
  fi
  while :; do
    state=$(resource_state)
    if [ "$state" != "$told" ]; then say "queued resource $name: ${state:-none}"; fi
    told=$state
    case $state in
      ACTIVE) if [ "$(node_state)" = READY ]; then return; fi ;;
      "")
        if [ "$(node_state)" = READY ]; then return; fi # attached: nobody asked for it by a queue
        create_resource
        ;;
      FAILED)
        say "the request failed: $(cloud queued-resources describe "$name" '--format=value(state.failedData.error.message)')"
        delete_resource
        exit 1
        ;;
      SUSPENDED)
        say "it was preempted or suspended; deleting what is left of it"
        delete_resource
        ;;
    esac
    sleep "$poll"
  done
}

# Whether the TPU was taken away. A suspended one may still say that it is ready for a moment.
preempted() {
  case $(resource_state) in SUSPENDING | SUSPENDED) return 0 ;; "") return 1 ;; esac
  case $(node_state) in PREEMPTED | TERMINATED | "") return 0 ;; *) return 1 ;; esac
}

# Copies the committed files to all workers and makes their environment.
install() {
  local archive setup
  archive=$(mktemp)
  git -C "$root" archive --format=tar.gz -o "$archive" HEAD
  cloud tpu-vm scp "$archive" "$name:synth2_jax.tar.gz" --worker=all
  rm -f "$archive"
  setup='mkdir -p synth2_jax && tar -xzf synth2_jax.tar.gz -C synth2_jax && cd synth2_jax'
  setup+=' && { command -v python3.11 >/dev/null || sudo apt-get install -qq -y python3.11-venv; }'
  setup+=" && launch/environment.sh && .venv/bin/python -m pip install -qq -c constraints.txt -e '.[tpu]'"
  if [ -n "$mount" ]; then
    setup+=" && sudo mkdir -p ${mount#*:} && { mountpoint -q ${mount#*:} || gcsfuse -o allow_other ${mount%%:*} ${mount#*:}; }"
  fi
  on_worker all "$setup"
}

# The last word on exit: nothing is left behind unsaid.
farewell() {
  local code=$?
  trap - EXIT
  if $delete_on_exit; then
    delete_resource
  elif ! $dry_run && [ -n "$(resource_state)" ]; then
    say "$name still exists and costs; delete it by: launch/tpu_run.sh delete $name${zone:+ --zone=$zone}${project:+ --project=$project}"
  fi
  exit "$code"
}
