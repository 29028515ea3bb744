#!/usr/bin/env bash
# Runs a command, passes SIGTERM on to it and its exit code to the platform.
# EXIT_ON_MISTAKE: in place of 1 to 4, which would be the same the next time (a mistake, refuted,
# damaged), where a platform restarts whatever is not 0.
set -uo pipefail
pid='' stopped=''
trap 'stopped=1; [[ -z $pid ]] || kill -TERM "$pid" 2>/dev/null' TERM INT
"$@" &
pid=$!
[[ -z $stopped ]] || kill -TERM "$pid" # it came before the program was known
wait "$pid"
code=$?
while kill -0 "$pid" 2>/dev/null; do # the signal ended the wait, not the program
  wait "$pid"
  code=$?
done
((code < 1 || code > 4)) || code=${EXIT_ON_MISTAKE:-$code}
exit "$code"
