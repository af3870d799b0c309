# shellcheck shell=sh
# What the scripts of this folder share: options, topologies, quoting, and gcloud on one worker or all of them.
# Sourced, with $accepts (options of the script) and $needs (those that must be given) set, and help() defined.
# Variables cross the border between this file and the scripts, which is why they look unused or unset in either one:
# shellcheck disable=SC2034,SC2154

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=$(CDPATH='' cd -- "$here/../.." && pwd)
self=${0##*/}

name='' zone='' project='' topology='' spot='' no_queue='' python=3.12 mount='' logs='' config='' replace=''
then_delete='' failures=5 dry_run=''
accelerator='' chips='' image=''

say() { printf '%s: %s\n' "$self" "$*" >&2; }

fail() {
  say "error: $*"
  exit 1
}

# The caller's mistake: one line, with the usage, and exit status 2.
refuse() {
  say "error: $*; usage: $(help | sed -n '1s/^usage: //p') ($self --help says more)"
  exit 2
}

# Reads the options up to `--` or the first word that is none; $consumed words are to be shifted away by the caller.
parse() {
  consumed=0
  while [ $# -gt 0 ]; do
    case $1 in
      --help | -h) help; exit 0 ;;
      --) consumed=$((consumed + 1)); break ;;
      -*) ;;
      *) break ;;
    esac
    option=${1%%=*}
    case " $accepts dry-run " in
      *" ${option#--} "*) ;;
      *) refuse "no option $option" ;;
    esac
    case $option in
      --dry-run | --spot | --no-queue | --replace | --then-delete)
        [ "$option" = "$1" ] || refuse "$option takes no value"
        value=1 ;;
      *)
        if [ "$option" = "$1" ]; then
          if [ $# -lt 2 ]; then refuse "$option needs a value"; fi
          value=$2
          shift
          consumed=$((consumed + 1))
        else
          value=${1#*=}
        fi
        [ -n "$value" ] || refuse "$option needs a value" ;;
    esac
    shift
    consumed=$((consumed + 1))
    case $option in
      --name) name=$value ;;
      --zone) zone=$value ;;
      --project) project=$value ;;
      --topology) topology=$value ;;
      --spot) spot=$value ;;
      --no-queue) no_queue=$value ;;
      --python) python=$value ;;
      --mount) mount=${value#gs://} ;;
      --logs) logs=$value ;;
      --config) config=$value ;;
      --replace) replace=$value ;;
      --then-delete) then_delete=$value ;;
      --failures) failures=$value ;;
      --dry-run) dry_run=$value ;;
    esac
  done
  for option in $needs; do
    case $option in
      name) value=$name ;;
      zone) value=$zone ;;
      topology) value=$topology ;;
      config) value=$config ;;
    esac
    [ -n "$value" ] || refuse "--$option is missing"
  done
  check_form --name "$name" '[a-z]([-a-z0-9]{0,61}[a-z0-9])?' 'small letters, digits and hyphens'
  check_form --zone "$zone" '[a-z]+-[a-z]+[0-9]+-[a-z]' 'a zone such as us-west4-a'
  check_form --project "$project" '[a-z][-.:a-z0-9]{4,60}' 'a project id'
  check_form --python "$python" '3\.1[123]' '3.11, 3.12 or 3.13'
  check_form --mount "$mount" '[a-z0-9][-._a-z0-9]{1,220}[a-z0-9]' 'a bucket, without a path'
  check_form --failures "$failures" '[0-9]{1,4}' 'a number'
  [ -z "$topology" ] || read_topology
  [ -n "$dry_run" ] || command -v gcloud > /dev/null || fail "no gcloud on the PATH: install the Google Cloud CLI"
}

check_form() {
  [ -z "$2" ] || printf '%s' "$2" | grep -Eqx -- "$3" || refuse "$1 $2: must be $4"
}

# The slices that can be asked for by their number of chips, so that each number means one shape.
read_topology() {
  kind=${topology%%:*} shape=${topology#*:}
  case $kind in
    v5e | v6e) shapes='1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16' ;;
    v5p) shapes='2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16 16x16x24' ;;
    *) refuse "--topology $topology: must be v5e:, v5p: or v6e: and a shape, such as v5e:8x8" ;;
  esac
  case " $shapes " in
    *" $shape "*) ;;
    *) refuse "--topology $topology: $kind has the shapes $shapes" ;;
  esac
  chips=$(($(printf '%s' "$shape" | tr x '*')))
  case $kind in
    v5e) accelerator=v5litepod-$chips image=v2-alpha-tpuv5-lite ;;
    v6e) accelerator=v6e-$chips image=v2-alpha-tpuv6e ;;
    v5p) accelerator=v5p-$((2 * chips)) image=v2-alpha-tpuv5 ;; # named by cores, two on a chip
  esac
}

# One word that a shell reads back as "$1".
quote() {
  case $1 in
    '' | *[!-A-Za-z0-9_=.,:/@%+]*) printf '%s\n' "$1" | sed "s/'/'\\\\''/g; 1s/^/'/; \$s/\$/'/" ;;
    *) printf '%s\n' "$1" ;;
  esac
}

quote_all() {
  line=''
  for word; do line="$line $(quote "$word")"; done
  printf '%s' "${line# }"
}

# gcloud, or with --dry-run what it would have been called with.
cloud() {
  if [ -n "$dry_run" ]; then
    printf 'gcloud %s\n' "$(quote_all "$@")"
  else
    gcloud "$@"
  fi
}

# cloud tpu-vm|queued-resources VERB with zone and project; never a question to a terminal.
tpus() {
  cloud compute tpus "$@" --zone="$zone" ${project:+--project="$project"} --quiet
}

# State of the slice: READY can be used; ABSENT was found to be nowhere; UNKNOWN is no answer.
node_state() {
  if state=$(tpus tpu-vm describe "$name" --format='value(state)' 2> "$work/describe"); then
    echo "${state:-UNKNOWN}"
  elif grep -Eqi 'not.?found|does not exist' "$work/describe"; then
    echo ABSENT
  else
    echo UNKNOWN
  fi
}

# Numbers of the slice's workers. A dry run knows none and shows the first.
find_workers() {
  if [ -n "$dry_run" ]; then
    tpus tpu-vm describe "$name" --format='value(networkEndpoints[].ipAddress)'
    workers=0
    echo '# worker 0 is shown; the same goes to every other worker at the same time'
    return
  fi
  addresses=$(tpus tpu-vm describe "$name" --format='value(networkEndpoints[].ipAddress)') \
    || fail "no slice $name in $zone that can be described: create.sh makes one"
  number=$(printf '%s' "$addresses" | tr -s ';, ' '\n' | grep -c '[0-9]')
  [ "$number" -gt 0 ] || fail "$name has no workers yet: wait until it is READY"
  workers='' worker=0
  while [ "$worker" -lt "$number" ]; do
    workers="$workers $worker"
    worker=$((worker + 1))
  done
  # The first connection of all makes the SSH keys; it must be over before there are several.
  [ -f "$HOME/.ssh/google_compute_engine" ] || on_worker 0 true || fail "worker 0 of $name cannot be reached"
}

# on_worker WORKER COMMAND: a connection that is dead is noticed in two minutes.
on_worker() {
  tpus tpu-vm ssh "$name" --worker="$1" --command="$2" \
    --ssh-flag=-oConnectTimeout=20 --ssh-flag=-oServerAliveInterval=30 --ssh-flag=-oServerAliveCountMax=4
}

# A command of worker.sh, as the worker's shell will read it: the script lies where setup.sh unpacks it.
# shellcheck disable=SC2016
worker_command() {
  printf 'sh "$HOME/radit_jax/source/scripts/tpu_vm/worker.sh" %s' "$(quote_all "$@")"
}

# each_worker FUNCTION: FUNCTION WORKER on all at once; output in $work/WORKER.log, statuses in $work/WORKER.status.
each_worker() {
  if [ -n "$dry_run" ]; then
    for worker in $workers; do "$1" "$worker"; done
    return
  fi
  for worker in $workers; do
    {
      status=0
      "$1" "$worker" > "$work/$worker.log" 2>&1 < /dev/null || status=$?
      echo "$status" > "$work/$worker.status"
    } &
  done
  wait
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
