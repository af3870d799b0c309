#!/bin/sh
# Stops the command that launch.sh has started on the workers of a slice.
set -eu

accepts='name zone project'
needs='name zone'
help() {
  cat << 'TEXT'
usage: stop.sh --name NAME --zone ZONE [--project PROJECT] [--dry-run]

For a command whose launch.sh is gone. It gets SIGTERM, upon which `radit` saves its state; what has not ended five
minutes later is killed. Without such a command nothing happens.

  --project PROJECT  another than gcloud's own
  --dry-run          print the gcloud commands, run none
TEXT
}
# shellcheck source=scripts/tpu_vm/lib.sh
. "$(dirname -- "$0")/lib.sh"
parse "$@"
shift "$consumed"
[ $# -eq 0 ] || refuse "unexpected $1"

# shellcheck disable=SC2016
stop() { on_worker "$1" '[ ! -f "$HOME/radit_jax/job" ] || '"$(worker_command stop)"; }

find_workers
each_worker stop
[ -z "$dry_run" ] || exit 0
for worker in $workers; do
  [ "$(cat "$work/$worker.status")" = 0 ] || fail "worker $worker cannot be reached: $(tail -n 1 "$work/$worker.log")"
done
