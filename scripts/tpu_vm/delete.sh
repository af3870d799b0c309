#!/bin/sh
# Deletes a TPU slice and its request: from then on it costs nothing.
set -eu

accepts='name zone project'
needs='name zone'
help() {
  cat << 'TEXT'
usage: delete.sh --name NAME --zone ZONE [--project PROJECT] [--dry-run]

Deletes the slice NAME, its disks, and the queued resource it came from. Fetch what you need first.

  --project PROJECT  another than gcloud's own
  --dry-run          print the gcloud commands, run none
TEXT
}
# shellcheck source=scripts/tpu_vm/lib.sh
. "$(dirname -- "$0")/lib.sh"
parse "$@"
shift "$consumed"
[ $# -eq 0 ] || refuse "unexpected $1"

if [ -n "$dry_run" ]; then
  tpus queued-resources describe "$name" --format='value(state.state)'
  echo '# if there is such a request'
  tpus queued-resources delete "$name" --force
  echo '# else'
  tpus tpu-vm delete "$name"
elif tpus queued-resources describe "$name" --format='value(state.state)' > "$work/state" 2>&1; then
  tpus queued-resources delete "$name" --force
else
  tpus tpu-vm delete "$name"
fi
