#!/bin/sh
# Starts the same command on every worker of a slice, and follows it to its end.
set -eu

accepts='name zone project logs replace'
needs='name zone'
help() {
  cat << 'TEXT'
usage: launch.sh --name NAME --zone ZONE [--logs DIR] [--replace] [--project PROJECT] [--dry-run] -- COMMAND...

Runs COMMAND on all workers, in the environment that setup.sh made and in the home directory, and follows it. The words
of COMMAND reach the workers as they are here. What worker 0 prints is shown, what each one prints is in DIR.

A lost connection does not stop the command: gcloud connects again. When a worker fails, the others get a minute to
end, and are stopped. Ctrl-C stops all: `radit` saves its state first, and the same command continues. A second Ctrl-C
does not wait for that.

Exit status: 2 if a worker says 2 (a wrong call), else the highest of the workers; 255 is a worker that was lost.

  --logs DIR         worker-0.log and so on, appended to (default tpu_vm_logs/NAME)
  --replace          first stop the command that is still running there
  --project PROJECT  another than gcloud's own
  --dry-run          print the gcloud commands, run none
TEXT
}
# shellcheck source=scripts/tpu_vm/lib.sh
. "$(dirname -- "$0")/lib.sh"
parse "$@"
shift "$consumed"
[ $# -gt 0 ] || refuse "no command to run"

logs=${logs:-tpu_vm_logs/$name}
job=$(date +%s)-$$
command=$(worker_command run "$job" "${replace:-0}" "$@")
find_workers
if [ -n "$dry_run" ]; then
  on_worker 0 "$command"
  exit
fi
mkdir -p "$logs"

# gcloud's own exit status does not say whether the command ended or the connection: the worker's last line does.
follow() {
  on_worker "$1" "$command" >> "$logs/worker-$1.log" 2>&1 < /dev/null &
  echo $! > "$work/$1.pid"
  wait $! || true
  status=$(sed -n "s/^tpu_vm: job $job: exit status \([0-9]*\)$/\1/p" "$logs/worker-$1.log" | tail -n 1)
  echo "${status:-255}" > "$work/$1.new"
  mv "$work/$1.new" "$work/$1.status"
}

stop() {
  for worker in $workers; do
    [ -f "$work/$worker.status" ] || on_worker "$worker" "$(worker_command stop)" \
      >> "$logs/worker-$worker.log" 2>&1 < /dev/null &
  done
}

interrupts=0
trap 'interrupts=$((interrupts + 1))' INT TERM HUP
for worker in $workers; do echo "tpu_vm: $(date): $*" >> "$logs/worker-$worker.log"; done
tail -n 1 -f "$logs/worker-0.log" &
shown=$!
for worker in $workers; do follow "$worker" & done

seconds=0 failed_at='' stopped='' stopped_at=''
while :; do
  left=''
  for worker in $workers; do
    if [ ! -f "$work/$worker.status" ]; then
      left="$left $worker"
    elif [ -z "$failed_at" ] && [ "$(cat "$work/$worker.status")" != 0 ]; then
      failed_at=$seconds
      [ -n "$stopped" ] || say "worker $worker ended with exit status $(cat "$work/$worker.status")"
    fi
  done
  [ -n "$left" ] || break
  if [ "$interrupts" -ge 2 ]; then
    say "leaving; what runs on worker$left may go on: stop.sh stops it"
    break
  fi
  if [ "$interrupts" -gt 0 ] || { [ -n "$failed_at" ] && [ $((seconds - failed_at)) -ge 60 ]; }; then
    if [ -z "$stopped" ]; then
      say "stopping worker$left; what is running there saves its state first"
      stopped=$left
    fi
    # Again each minute: this connection can fail too.
    if [ -z "$stopped_at" ] || [ $((seconds - stopped_at)) -ge 60 ]; then
      stopped_at=$seconds
      stop
    fi
  fi
  # A slice that was taken away does not close its connections.
  if [ $((seconds % 30)) -eq 29 ]; then
    state=$(node_state)
    case $state in
      READY | UNKNOWN) ;;
      *)
        say "$name is $state"
        for worker in $left; do
          kill "$(cat "$work/$worker.pid")" 2> /dev/null || true
        done ;;
    esac
  fi
  sleep 1 || true # an interrupted sleep is no reason to leave
  seconds=$((seconds + 1))
done
sleep 1 || true
kill "$shown" 2> /dev/null || true
if [ "$interrupts" -gt 0 ]; then
  for worker in $left; do kill "$(cat "$work/$worker.pid")" 2> /dev/null || true; done
  exit 130
fi

worst=0 wrong=''
for worker in $workers; do
  status=$(cat "$work/$worker.status")
  [ "$status" = 0 ] || say "worker $worker: exit status $status ($logs/worker-$worker.log)"
  case " $stopped " in
    *" $worker "*) continue ;; # it was ended because another one failed
  esac
  [ "$status" != 2 ] || wrong=1
  [ "$status" -le "$worst" ] || worst=$status
done
[ -z "$wrong" ] || exit 2
exit "$worst"
