#!/bin/sh
# The whole recipe of a config on a TPU slice: `radit run`, from creating the slice to the report.
set -eu

accepts='name zone project topology spot no-queue python mount logs failures then-delete config'
needs='name zone topology config'
help() {
  cat << 'TEXT'
usage: recipe.sh --name NAME --zone ZONE --topology v5e:8x8 --config CONFIG [OPTIONS] [--dry-run] -- RADIT_OPTIONS...

Runs `radit run --config CONFIG RADIT_OPTIONS` through keep_running.sh, which says what the other options mean. CONFIG is
a name in configs/; a config of your own must lie there too, as setup.sh takes it to the workers.

Paths in RADIT_OPTIONS are the workers': relative ones start at their home directory, ~/bucket is what --mount mounts
(quote it: '~' is your own shell's otherwise; bucket/... is the same).
TEXT
}
# shellcheck source=scripts/tpu_vm/lib.sh
. "$(dirname -- "$0")/lib.sh"
parse "$@"
shift "$consumed"
[ -f "$root/configs/$config.py" ] || refuse "--config $config: there is no configs/$config.py"

exec "$here/keep_running.sh" --name "$name" --zone "$zone" --topology "$topology" ${project:+--project "$project"} \
  ${spot:+--spot} ${no_queue:+--no-queue} --python "$python" ${mount:+--mount "$mount"} ${logs:+--logs "$logs"} \
  --failures "$failures" ${then_delete:+--then-delete} ${dry_run:+--dry-run} -- radit run --config "$config" "$@"
