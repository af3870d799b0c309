#!/bin/sh
# Checks that every worker of a slice sees the chips that the topology says.
set -eu

accepts='name zone project topology'
needs='name zone topology'
help() {
  cat << 'TEXT'
usage: check.sh --name NAME --zone ZONE --topology v5e:8x8 [--project PROJECT] [--dry-run]

Starts JAX on all workers together and compares the devices that each one sees, its own and those of the whole slice,
with the topology. Exit status 1 names the workers that differ. Needs setup.sh to have been run.

  --topology KIND:SHAPE  as in create.sh
  --project PROJECT      another than gcloud's own
  --dry-run              print the gcloud commands, run none
TEXT
}
# shellcheck source=scripts/tpu_vm/lib.sh
. "$(dirname -- "$0")/lib.sh"
parse "$@"
shift "$consumed"
[ $# -eq 0 ] || refuse "unexpected $1"

find_workers
# shellcheck disable=SC2086
number=$(set -- $workers && echo $#)
count() { on_worker "$1" "$(worker_command devices "$number")"; }
each_worker count
[ -z "$dry_run" ] || exit 0

[ $((chips % number)) -eq 0 ] || fail "$name has $number workers, which do not divide the $chips chips of $topology"
own=$((chips / number)) differ='' short=''
for worker in $workers; do
  # "chips C, JAX L of G": files of the kernel, devices of this worker, devices of the slice.
  found=$(sed -n 's/^tpu_vm: \(chips .*\)/\1/p' "$work/$worker.log" | tail -n 1)
  echo "worker $worker: ${found:-no answer: $(grep . "$work/$worker.log" | tail -n 1)}"
  case $found in
    "chips "*", JAX $own of $chips") ;;
    "chips $own, "*) differ="$differ $worker" ;;
    *) differ="$differ $worker" short="$short $worker" ;;
  esac
done
# A slice in which one worker lacks a chip fails on all of them: those whose own chips are there are not to blame.
[ -z "$short" ] || differ=$short
[ -z "$differ" ] || fail "$name: worker$differ: not the $own chips of $chips that $topology has on each of $number workers"
say "$name: $number workers with $own chips each, as $topology says"
