#!/usr/bin/env bash
# Runs a command, and tells the platform what it cannot know: a program that SIGTERM stopped has saved
# and ends with 0, which Kubernetes would take for finished. Then the exit code is 143: start it again.
# EXIT_ON_MISTAKE: in place of 1, a user's mistake, where a platform restarts whatever is not 0.
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
((code != 0)) || [[ -z $stopped ]] || code=143
((code != 1)) || code=${EXIT_ON_MISTAKE:-1}
exit "$code"
