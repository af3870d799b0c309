#!/bin/sh
# Runs a command on a slice to its end, however often the slice is taken away.
set -eu

accepts='name zone project topology spot no-queue python mount logs failures then-delete'
needs='name zone topology'
help() {
  cat << 'TEXT'
usage: keep_running.sh --name NAME --zone ZONE --topology v5e:8x8 [--spot] [OPTIONS] [--dry-run] -- COMMAND...

Creates the slice unless it is there, sets it up, checks it, and launches COMMAND. When the slice is lost, it is deleted,
created and set up again, and the same COMMAND started again: it must continue what it left in a bucket, as `radit`
does. Waits between attempts, 10 seconds at first and 10 minutes at most.

Ends with 0 when COMMAND did, and with 2 when COMMAND was a wrong call. Exit status 75 (stopped, can be continued), a
slice that is lost or not to be had and a lost connection are tried again without limit; anything else up to --failures
times in a row. Ctrl-C stops the workers and leaves the slice, which goes on costing money.

  --failures N                        attempts in a row that may fail (default 5)
  --then-delete                       delete the slice when COMMAND has ended with 0
  --logs DIR                          as in launch.sh
  --topology, --spot, --no-queue      as in create.sh
  --python VERSION, --mount BUCKET    as in setup.sh
  --project PROJECT                   another than gcloud's own
  --dry-run                           print the gcloud commands of one attempt, run none
TEXT
}
# shellcheck source=scripts/tpu_vm/lib.sh
. "$(dirname -- "$0")/lib.sh"
parse "$@"
shift "$consumed"
[ $# -gt 0 ] || refuse "no command to run"

# part SCRIPT [OPTION]...: one of the other scripts, on this slice.
part() {
  script=$1
  shift
  "$here/$script.sh" --name "$name" --zone "$zone" ${project:+--project "$project"} ${dry_run:+--dry-run} "$@"
}

# A slice that can be used: the one that is there, or a new one.
ready() {
  state=$(node_state)
  case $state in
    READY) return 0 ;;
    UNKNOWN) return 1 ;;
  esac
  # What is left of a lost slice holds its name; a request may be there without a slice.
  if [ "$state" != ABSENT ] || tpus queued-resources describe "$name" --format='value(state.state)' > "$work/state" 2>&1
  then
    say "$name is $state: deleting what is left of it"
    part delete || return 1
  fi
  part create --topology "$topology" ${spot:+--spot} ${no_queue:+--no-queue}
}

# What an earlier call left running holds the chips, so it has to end before they can be counted.
set_up() {
  part stop && part setup --python "$python" ${mount:+--mount "$mount"} && part check --topology "$topology"
}

if [ -n "$dry_run" ]; then
  tpus tpu-vm describe "$name" --format='value(state)'
  echo '# unless it is READY; what is left of a lost one is deleted first'
  part delete
  part create --topology "$topology" ${spot:+--spot} ${no_queue:+--no-queue}
  set_up
  part launch --replace ${logs:+--logs "$logs"} -- "$@"
  [ -z "$then_delete" ] || part delete
  exit
fi

# Everything from the slice to the end of the command; $step is what was not reached, nothing if the command ran.
attempt() {
  step='no slice'
  ready || return
  if [ -z "$made" ]; then
    step='the slice could not be set up'
    set_up || return
    made=1
  fi
  step=''
  part launch --replace ${logs:+--logs "$logs"} -- "$@"
}

interrupted=''
trap 'interrupted=1' INT TERM HUP
delay=10 failed=0 made=''
while :; do
  status=0
  start=$(date +%s)
  attempt "$@" || status=$?
  if [ -n "$interrupted" ]; then
    say "interrupted; $name may still be there and cost money: delete.sh --name $name --zone $zone"
    exit 130
  fi
  case $step:$status in
    :0)
      say "$name has run the command to its end"
      tries=0
      while [ -n "$then_delete" ] && ! part delete; do
        [ "$((tries += 1))" -le "$failures" ] || fail "$name cannot be deleted, and goes on costing money"
        sleep 20 || true
      done
      exit 0 ;;
    :2)
      say "error: the command was a wrong call (exit status 2), which no other attempt would change; $name is still there"
      exit 2 ;;
  esac
  state=$(node_state)
  [ "$state" = READY ] || made=''
  reason=${step:-exit status $status} counts=''
  case $step:$status:$state in
    :75:*) reason='stopped, to be continued' ;;
    *:75:* | :255:READY | :255:UNKNOWN) ;;
    'no slice':* | *:READY | *:UNKNOWN) counts=1 ;;
    *) reason="$name is $state" ;;
  esac
  if [ -z "$counts" ]; then
    failed=0
  elif [ "$((failed += 1))" -gt "$failures" ]; then
    say "error: $reason, and $failures attempts before it failed too; $name may still be there"
    exit "$status"
  fi
  [ $(($(date +%s) - start)) -lt 1800 ] || delay=10
  say "$reason: trying again in $delay s"
  sleep "$delay" || true
  delay=$((delay * 2 < 600 ? delay * 2 : 600))
done
