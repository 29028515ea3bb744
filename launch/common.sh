# shellcheck shell=bash
# Shared by the scripts beside it. DRY_RUN=1 prints every command and executes none of them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
SELF=launch/$(basename "$0")

fail() {
  printf 'error: %s\n' "$1" >&2
  exit 1
}

# need VARIABLE=EXAMPLE…: ends with one message if any of the variables is not set.
need() {
  local pair name missing='' examples=''
  for pair; do
    name=${pair%%=*}
    [[ -n ${!name:-} ]] || { missing+=" $name" examples+=$'\n  export '$pair; }
  done
  [[ -z $missing ]] || fail "$SELF needs these variables:$missing. For example:$examples"
  [[ ${NAME:-x} =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
    fail "NAME: expected small letters, digits and dashes, as in mage-2, got '$NAME'."
  [[ ${BUCKET:-} != *[:/]* ]] || fail "BUCKET: expected a name without gs:// and folders, got '$BUCKET'."
}

# The words as one line that a shell reads as the same words.
quoted() {
  local word line=''
  for word; do
    case $word in
      '' | *[!A-Za-z0-9_./:=,@%+-]*) word="'${word//"'"/"'\\''"}'" ;;
    esac
    line+="${line:+ }$word"
  done
  printf '%s' "$line"
}

run() {
  printf '+ %s\n' "$(quoted "$@")"
  [[ ${DRY_RUN:-} == 1 ]] || "$@"
}

# What a command prints; nothing if it fails, or in a dry run.
ask() {
  printf '+ %s\n' "$(quoted "$@")" >&2
  [[ ${DRY_RUN:-} == 1 ]] || "$@" 2>/dev/null || true
}

# finish DONE NEXT: the last line of every script.
finish() {
  [[ ${DRY_RUN:-} != 1 ]] || printf 'dry run, nothing was executed: '
  printf '%s. Next: %s\n' "$1" "$2"
}

command_needed() {
  (($#)) || fail "$SELF run needs the command to run. For example:
  $SELF run python -m unlearn_jax.train --config=configs/imagenet_mage.py --workdir=runs/mage"
}

# Of TOPOLOGY, named as launch.aot names it, sets what the platforms call it: CHIPS, TYPE and RUNTIME
# (Cloud TPU), NODE and MACHINE (GKE, 4 chips a host), and SHAPE.
topology() {
  local side generation=${TOPOLOGY%%:*}
  SHAPE=${TOPOLOGY#*:} CHIPS=1
  [[ $TOPOLOGY =~ ^[a-z0-9]+:[0-9]+(x[0-9]+)+$ ]] ||
    fail "TOPOLOGY: expected GENERATION:SHAPE as in v5e:4x4 or v5p:2x2x4, got '$TOPOLOGY'."
  for side in ${SHAPE//x/ }; do CHIPS=$((CHIPS * side)); done
  ((CHIPS > 0 && CHIPS % 4 == 0)) ||
    fail "TOPOLOGY: expected a multiple of 4 chips, as hosts have 4, got $CHIPS of '$TOPOLOGY'."
  case $generation in
    v4) TYPE=v4-$((2 * CHIPS)) RUNTIME=tpu-ubuntu2204-base NODE=tpu-v4-podslice MACHINE=ct4p-hightpu-4t ;;
    v5e) TYPE=v5litepod-$CHIPS RUNTIME=v2-alpha-tpuv5-lite NODE=tpu-v5-lite-podslice MACHINE=ct5lp-hightpu-4t ;;
    v5p) TYPE=v5p-$((2 * CHIPS)) RUNTIME=v2-alpha-tpuv5 NODE=tpu-v5p-slice MACHINE=ct5p-hightpu-4t ;;
    v6e) TYPE=v6e-$CHIPS RUNTIME=v2-alpha-tpuv6e NODE=tpu-v6e-slice MACHINE=ct6e-standard-4t ;;
    *) fail "TOPOLOGY: expected v4, v5e, v5p or v6e before the colon, got '$TOPOLOGY'." ;;
  esac
  export SHAPE CHIPS TYPE RUNTIME NODE MACHINE
}

# The verb create, where no platform makes machines: the package in VENV, for GPUs.
venv=${VENV:-.venv}
create_venv() {
  [[ -x $venv/bin/python ]] || run python3 -m venv "$venv"
  run "$venv/bin/pip" install --constraint constraints.txt --editable '.[cuda]'
  finish "the package is in $venv" "$SELF run COMMAND"
}
