#!/bin/sh
# Installs this checkout on every worker of a slice, with a Python of its own.
set -eu

accepts='name zone project python mount'
needs='name zone'
help() {
  cat << 'TEXT'
usage: setup.sh --name NAME --zone ZONE [--python 3.12] [--mount BUCKET] [--project PROJECT] [--dry-run]

Copies this checkout to every worker and installs it there with the extras tpu and gcs, into ~/radit_jax/venv. The
stock images start at Python 3.10, so uv fetches a newer one. May be repeated, after a change to the code for instance.

  --python VERSION   3.11, 3.12 or 3.13
  --mount BUCKET     also mount this bucket at ~/bucket, with gcsfuse, for stores and indexes that all workers read
  --project PROJECT  another than gcloud's own
  --dry-run          print the gcloud commands, run none
TEXT
}
# shellcheck source=scripts/tpu_vm/lib.sh
. "$(dirname -- "$0")/lib.sh"
parse "$@"
shift "$consumed"
[ $# -eq 0 ] || refuse "unexpected $1"

archive=$work/radit_jax.tar.gz
(cd "$root" && tar --exclude=__pycache__ -czf "$archive" pyproject.toml README.md LICENSE configs radit_jax scripts/tpu_vm)
# shellcheck disable=SC2016
unpack='rm -rf "$HOME/radit_jax/source" && mkdir -p "$HOME/radit_jax/source" &&
tar -xzf "$HOME/radit_jax.tar.gz" -C "$HOME/radit_jax/source"'

set_up() {
  tpus tpu-vm scp "$archive" "$name:radit_jax.tar.gz" --worker="$1" \
    && on_worker "$1" "$unpack && $(worker_command install "$python")" || return
  [ -z "$mount" ] || on_worker "$1" "$(worker_command mount "$mount")"
}

find_workers
each_worker set_up
[ -z "$dry_run" ] || exit 0
bad=''
for worker in $workers; do
  if [ "$(cat "$work/$worker.status")" != 0 ]; then
    bad="$bad $worker"
    sed "s/^/worker $worker: /" "$work/$worker.log" | tail -n 20 >&2
  fi
done
[ -z "$bad" ] || fail "not set up: worker$bad"
say "$name: radit_jax is installed on every worker"
