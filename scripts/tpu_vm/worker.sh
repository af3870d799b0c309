#!/bin/sh
# What the other scripts run on a worker, where setup.sh has put it. Not to be called by hand.
#
#   worker.sh install PYTHON               radit_jax[tpu,gcs] in ~/radit_jax/venv
#   worker.sh mount BUCKET                 at ~/bucket
#   worker.sh devices WORKERS              prints "tpu_vm: chips C, JAX L of G"
#   worker.sh run ID REPLACE COMMAND...    starts COMMAND once per ID, apart from the connection, and follows its output
#   worker.sh stop                         SIGTERM to the command, five minutes later SIGKILL
set -eu

base=$HOME/radit_jax
job=$base/jobs/$(cat "$base/job" 2> /dev/null || true) # the last one that was started
PATH=$base/venv/bin:$HOME/.local/bin:$PATH
export PATH

running() { [ -f "$job/pid" ] && [ ! -f "$job/status" ] && kill -0 "$(cat "$job/pid")" 2> /dev/null; }

stop() {
  running || return 0
  kill -s TERM "$(cat "$job/command")" 2> /dev/null || true
  seconds=0
  while running; do
    if [ "$seconds" -ge 300 ]; then
      kill -s KILL -- "-$(cat "$job/pid")" || true # the whole session of the job
      echo 137 > "$job/status"
    fi
    sleep 1
    seconds=$((seconds + 1))
  done
}

end() {
  printf '\ntpu_vm: job %s: exit status %s\n' "$1" "$2"
  exit "$2"
}

verb=$1
shift
case $verb in
  install)
    command -v uv > /dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
    # A Python of another version, or what a killed call left, is made anew.
    "$base/venv/bin/python" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2> /dev/null \
      || uv venv --clear --python "$1" "$base/venv"
    uv pip install --python "$base/venv/bin/python" --reinstall-package radit_jax "$base/source[tpu,gcs]" ;;
  mount)
    if ! command -v gcsfuse > /dev/null; then
      curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg \
        | sudo tee /usr/share/keyrings/cloud.google.asc > /dev/null
      repository="https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main"
      echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] $repository" \
        | sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
      sudo apt-get update -q
      sudo apt-get install -qy gcsfuse
    fi
    mkdir -p "$HOME/bucket"
    # Finished directories are renamed into place, which gcsfuse refuses by default.
    mountpoint -q "$HOME/bucket" || gcsfuse --implicit-dirs --rename-dir-limit=1000000 "$1" "$HOME/bucket" ;;
  devices)
    set -- "$1" "${TPU_VM_DEV:-/dev}" # tests have other devices
    chips=$(find "$2" "$2/vfio" -maxdepth 1 \( -name 'accel[0-9]*' -o -path '*/vfio/[0-9]*' \) 2> /dev/null | wc -l)
    # All workers have to be there, so one that is not must not hold up the others for ever.
    counts=$(timeout 300 python -c "
import jax
if $1 > 1: jax.distributed.initialize()
print(jax.local_device_count(), 'of', jax.device_count())") || counts='no devices'
    echo "tpu_vm: chips $((chips)), JAX $(printf '%s\n' "$counts" | tail -n 1)" ;;
  run)
    id=$1 replace=$2
    shift 2
    lines=100
    if [ ! -f "$base/jobs/$id/pid" ]; then
      if running; then
        if [ "$replace" != 1 ]; then
          echo "tpu_vm: a command is running here already: stop.sh stops it, launch.sh --replace too"
          end "$id" 2
        fi
        stop
      fi
      job=$base/jobs/$id
      mkdir -p "$job"
      echo "$id" > "$base/job"
      : > "$job/log" # here, as the job may be slower to open it than tail is below
      cd "$HOME"
      setsid sh "$0" job "$@" >> "$job/log" 2>&1 < /dev/null &
      echo $! > "$job/pid"
      lines=+1
    fi
    job=$base/jobs/$id
    tail -n "$lines" -s 0.2 -f --pid="$(cat "$job/pid")" "$job/log" || true
    end "$id" "$(cat "$job/status" 2> /dev/null || echo 137)" ;;
  job)
    "$@" &
    echo $! > "$job/command"
    status=0
    wait $! || status=$?
    echo "$status" > "$job/ended"
    mv "$job/ended" "$job/status" ;;
  stop)
    stop ;;
esac
