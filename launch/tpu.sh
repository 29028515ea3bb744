#!/usr/bin/env bash
# Cloud TPU queued resources: launch/tpu.sh create|run COMMAND…|status|logs|stop|delete
# Optional: SPOT=1, SLICES=N, MAX_RESTARTS=N, CREATE_FLAGS='more flags of gcloud'. See README.md.
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"

need NAME=mage PROJECT=my-project ZONE=us-west4-a TOPOLOGY=v5e:4x4 \
  IMAGE=us-docker.pkg.dev/my-project/my-images/unlearn_jax:tpu BUCKET=my-bucket
topology
slices=${SLICES:-1}
where=("--project=$PROJECT" "--zone=$ZONE")
resource=(gcloud compute tpus queued-resources)

state() { ask "${resource[@]}" describe "$NAME" "${where[@]}" '--format=value(state.state)'; }
everywhere() { run "${resource[@]}" ssh "$NAME" "${where[@]}" --node=all --worker=all "--command=$1"; }
remove() { run "${resource[@]}" delete "$NAME" "${where[@]}" --force --quiet; }

verb=${1:-}
shift || true
case $verb in
  create)
    found=$(state)
    case $found in
      '' | FAILED | SUSPENDED) # preempted ones stay SUSPENDED for ever
        [[ -z $found ]] || remove
        nodes=("--node-id=$NAME")
        ((slices == 1)) || nodes=("--node-count=$slices" "--node-prefix=$NAME")
        [[ ${SPOT:-} != 1 ]] || nodes+=(--spot)
        # shellcheck disable=SC2086 # several flags
        run "${resource[@]}" create "$NAME" "${where[@]}" "--accelerator-type=$TYPE" \
          "--runtime-version=$RUNTIME" "${nodes[@]}" \
          --scopes=https://www.googleapis.com/auth/cloud-platform ${CREATE_FLAGS:-}
        finish "$NAME: $slices x $TOPOLOGY was requested" "$SELF status, until it is ACTIVE"
        ;;
      *) finish "$NAME is there, $found" "$SELF status, until it is ACTIVE" ;;
    esac
    ;;
  run)
    command_needed "$@"
    run "${resource[@]}" scp launch/tpu_host.sh "$NAME:" "${where[@]}" --node=all --worker=all
    everywhere "bash tpu_host.sh $(quoted "$NAME" "$IMAGE" "$BUCKET" "${MAX_RESTARTS:-50}" "$@" --distributed)"
    finish "$NAME runs on every host" "$SELF logs"
    ;;
  status)
    found=$(state)
    [[ $found != ACTIVE && ${DRY_RUN:-} != 1 ]] ||
      everywhere "sudo docker ps --all --filter=name=^$NAME\$ --format='{{.Status}}'"
    finish "that is $NAME: ${found:-not there}" "$SELF create if it is not there or SUSPENDED, else $SELF logs"
    ;;
  logs)
    run "${resource[@]}" ssh "$NAME" "${where[@]}" --node=0 --worker=0 \
      "--command=sudo docker logs --follow --tail=100 $NAME"
    finish "that was process 0 of $NAME" "$SELF status"
    ;;
  stop)
    everywhere "sudo docker stop --time=300 $NAME"
    finish "$NAME has saved and stopped, its machines cost on" "$SELF run COMMAND, or $SELF delete"
    ;;
  delete)
    found=$(state)
    [[ -z $found && ${DRY_RUN:-} != 1 ]] || remove
    finish "$NAME and its machines are gone; gs://$BUCKET stays" "$SELF create"
    ;;
  *) fail "expected $SELF create|run COMMAND…|status|logs|stop|delete, got '$verb'." ;;
esac
