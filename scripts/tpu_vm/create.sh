#!/bin/sh
# Creates a TPU slice and waits until it is there.
set -eu

accepts='name zone project topology spot no-queue'
needs='name zone topology'
help() {
  cat << 'TEXT'
usage: create.sh --name NAME --zone ZONE --topology v5e:8x8 [--spot] [--no-queue] [--project PROJECT] [--dry-run]

Creates the slice NAME as a queued resource of the same name, and returns when it can be used. In the queue a request
waits for as long as it takes; Ctrl-C stops the waiting, and delete.sh takes the request back. Exit status 75: the
request failed, or the slice is gone already, and another try may go better.

  --topology KIND:SHAPE  v5e, v5p or v6e, as in `radit plan`
  --spot                 cheaper, and may be taken away at any time: see keep_running.sh
  --no-queue             ask for the slice now, and fail if there is none
  --project PROJECT      another than gcloud's own
  --dry-run              print the gcloud commands, run none
TEXT
}
# shellcheck source=scripts/tpu_vm/lib.sh
. "$(dirname -- "$0")/lib.sh"
parse "$@"
shift "$consumed"
[ $# -eq 0 ] || refuse "unexpected $1"

if [ -n "$no_queue" ]; then
  tpus tpu-vm create "$name" --accelerator-type="$accelerator" --version="$image" ${spot:+--spot}
else
  tpus queued-resources create "$name" --node-id="$name" --accelerator-type="$accelerator" \
    --runtime-version="$image" ${spot:+--spot}
fi
if [ -n "$dry_run" ]; then
  [ -n "$no_queue" ] || tpus queued-resources describe "$name" --format='value(state.state)'
  tpus tpu-vm describe "$name" --format='value(state)'
  exit
fi

# Nothing is wrong with the call: there was no capacity, or no longer.
lost() {
  say "error: $*"
  exit 75
}

shown=''
while [ -z "$no_queue" ]; do
  state=$(tpus queued-resources describe "$name" --format='value(state.state)') || state=UNKNOWN
  [ "$state" = "$shown" ] || say "$name: $state"
  shown=$state
  case $state in
    ACTIVE) break ;;
    FAILED | SUSPENDING | SUSPENDED | DELETING) lost "the request for $name is $state: delete.sh removes it" ;;
  esac
  sleep 20
done
while state=$(node_state) && [ "$state" != READY ]; do
  case $state in
    ABSENT | PREEMPTED | TERMINATED | STOPPED | DELETING) lost "$name is $state: delete.sh removes what is left" ;;
  esac
  sleep 10
done
say "$name is READY"
