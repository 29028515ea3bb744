#!/usr/bin/env bash
# GPUs under SLURM, one process per GPU: launch/slurm.sh create|run COMMAND…|status|logs|delete
# Run it where sbatch is, in a checkout that every node sees. Optional: MAX_RESTARTS=N, VENV=DIR, and
# sbatch's own variables, as SBATCH_PARTITION and SBATCH_ACCOUNT. See README.md.
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"

need NAME=mage NODES=2 GPUS=8 TIME=24:00:00
log=slurm-$NAME.log

job() { ask squeue --me --noheader "--name=$NAME" '--format=%A'; }

verb=${1:-}
shift || true
case $verb in
  create) create_venv ;;
  run)
    command_needed "$@"
    found=$(job)
    if [[ -n $found ]]; then
      finish "$NAME is there, job $found" "$SELF status"
    else
      # Each process has to see all GPUs of its node: jax takes the one with its own number.
      # shellcheck disable=SC2153 # the user's variables
      run sbatch "--job-name=$NAME" "--nodes=$NODES" "--gpus-per-node=$GPUS" \
        "--ntasks-per-node=$GPUS" "--time=$TIME" --requeue --signal=B:USR1@300 --open-mode=append \
        "--output=$log" launch/slurm_job.sh "$venv" "${MAX_RESTARTS:-50}" "$@" --distributed
      finish "$NAME was submitted" "$SELF status"
    fi
    ;;
  status)
    run squeue --me "--name=$NAME"
    run sacct "--name=$NAME" --duplicates --allocations '--format=JobID,State,ExitCode,Elapsed' || true
    finish "that is $NAME" "$SELF logs"
    ;;
  logs)
    run tail -n 100 -F "$log"
    finish "that was $log" "$SELF status"
    ;;
  delete)
    if found=$(job) && [[ -n $found || ${DRY_RUN:-} == 1 ]]; then
      run scancel --batch --signal=USR2 "${found:-JOB}" # slurm_job.sh: all processes save and end
      run scancel --state=PENDING "${found:-JOB}"
    fi
    finish "$NAME saves and ends" "$SELF status, or the same $SELF run COMMAND, which resumes"
    ;;
  *) fail "expected $SELF create|run COMMAND…|status|logs|delete, got '$verb'." ;;
esac
