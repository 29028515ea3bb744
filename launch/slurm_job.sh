#!/usr/bin/env bash
# The batch script of slurm.sh: slurm_job.sh VENV MAX_RESTARTS COMMAND…
# SLURM itself requeues after preemption and after a node that failed; here the job asks for it, when
# its time is over (USR1, see --signal) and when the program can go on. USR2 stops it for good.
set -uo pipefail
PATH=$(realpath -m "$1")/bin:$PATH restarts=$2
shift 2
over='' stopped=''
trap 'over=1; scancel --signal=TERM "$SLURM_JOB_ID"' USR1 # TERM goes to the processes: they save
trap 'stopped=1; scancel --signal=TERM "$SLURM_JOB_ID"' USR2
srun --gpu-bind=none --kill-on-bad-exit=0 --wait=120 "$@" &
wait $!
code=$?
while kill -0 $! 2>/dev/null; do # the signal ended the wait, not srun
  wait $!
  code=$?
done
# 0: finished. 1 to 4 (a mistake, refuted, damaged) would be the same the next time.
if [[ -z $stopped ]] && ((code > 4)) &&
  { [[ -n $over ]] || ((${SLURM_RESTART_COUNT:-0} < restarts)); }; then
  echo "exit code $code: $SLURM_JOB_ID goes back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
