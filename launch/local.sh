#!/usr/bin/env bash
# The GPUs of this machine: launch/local.sh create|run COMMAND…
# GPUS=1 is one process that drives all of them, which is what most want; GPUS=8 are 8 processes with one
# GPU each, as under SLURM. It stays in the foreground: Ctrl-C saves and stops, the same command resumes.
# Optional: VENV=DIR, PORT=N.
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"

need GPUS=1

verb=${1:-}
shift || true
case $verb in
  create) create_venv ;;
  run)
    command_needed "$@"
    PATH=$(realpath -m "$venv")/bin:$PATH
    code=0 pids=()
    trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
    for ((i = 0; i < GPUS; i++)); do
      words=("$@")
      ((GPUS == 1)) || words=(env "CUDA_VISIBLE_DEVICES=$i" "$@"
        "--coordinator=localhost:${PORT:-55527}" "--num_processes=$GPUS" "--process_id=$i")
      printf '+ %s\n' "$(quoted "${words[@]}")"
      [[ ${DRY_RUN:-} != 1 ]] || continue
      "${words[@]}" &
      pids+=($!)
    done
    for pid in ${pids[@]+"${pids[@]}"}; do
      last=0
      wait "$pid" || last=$?
      while kill -0 "$pid" 2>/dev/null; do # the signal ended the wait, not the process
        last=0
        wait "$pid" || last=$?
      done
      ((last == 0)) || ((code > 0 && code < 5)) || code=$last
    done
    if ((code)); then
      echo "exit code $code. 1 is a mistake, 3 refuted, 4 damaged, see above; after others, such as 75 (stopped), the same command resumes." >&2
      exit "$code"
    fi
    finish "the command has ended" "the next command"
    ;;
  *) fail "expected $SELF create|run COMMAND…, got '$verb'." ;;
esac
