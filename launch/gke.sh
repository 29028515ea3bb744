#!/usr/bin/env bash
# A JobSet on GKE: launch/gke.sh create|run COMMAND…|status|logs|stop|delete
# Optional: SPOT=1, SLICES=N, MAX_RESTARTS=N, CREATE_FLAGS='more flags of gcloud'. See README.md.
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"

need NAME=mage PROJECT=my-project ZONE=us-west4-a CLUSTER=my-cluster TOPOLOGY=v5e:4x4 \
  IMAGE=us-docker.pkg.dev/my-project/my-images/unlearn_jax:tpu BUCKET=my-bucket
topology
export SLICES=${SLICES:-1} MAX_RESTARTS=${MAX_RESTARTS:-50} HOSTS=$((CHIPS / 4)) ARGS=''
shape=()
((HOSTS == 1)) || shape=("--tpu-topology=$SHAPE") # one host has one shape
[[ ${SPOT:-} != 1 ]] || shape+=(--spot)
where=("--project=$PROJECT" "--zone=$ZONE" "--cluster=$CLUSTER")
kube=(kubectl "--context=gke_${PROJECT}_${ZONE}_$CLUSTER")

jobset() { # "NAME:", with how it ended after the colon, or nothing
  ask "${kube[@]}" get jobset "$NAME" --ignore-not-found \
    '--output=jsonpath={.metadata.name}:{.status.terminalState}'
}
pools() { for ((i = 0; i < SLICES; i++)); do echo "$NAME-$i"; done; }
pool() { ask gcloud container node-pools describe "$1" "${where[@]}" '--format=value(status)'; }
remove() { run "${kube[@]}" delete jobset "$NAME" --ignore-not-found --cascade=foreground; }

manifest() { # jobset.yaml with the variables that it names, and the words given as its args
  local word text variable
  for word; do
    word=${word//\\/\\\\} word=${word//\$/\$\$} # Kubernetes has $(…) of its own
    ARGS+="${ARGS:+, }\"${word//\"/\\\"}\""
  done
  text=$(<launch/jobset.yaml)
  for variable in NAME IMAGE BUCKET NODE SHAPE SLICES HOSTS MAX_RESTARTS ARGS; do
    text=${text//"\${$variable}"/"${!variable}"}
  done
  printf '%s\n' "$text"
}

verb=${1:-}
shift || true
case $verb in
  create)
    run gcloud container clusters get-credentials "$CLUSTER" "--project=$PROJECT" "--zone=$ZONE"
    for each in $(pools); do
      [[ -z $(pool "$each") ]] || continue
      # shellcheck disable=SC2086 # several flags
      run gcloud container node-pools create "$each" "${where[@]}" "--machine-type=$MACHINE" \
        "--num-nodes=$HOSTS" ${shape[@]+"${shape[@]}"} --workload-metadata=GKE_METADATA \
        ${CREATE_FLAGS:-}
    done
    finish "$NAME: $SLICES x $TOPOLOGY is there" "$SELF run COMMAND"
    ;;
  run)
    command_needed "$@"
    found=$(jobset)
    case $found in
      '' | *:?*) # none, or one that ended, which cannot be started again
        [[ -z $found ]] || remove
        text=$(manifest "$@" --distributed)
        apply=("${kube[@]}" apply --filename=-)
        printf "+ %s <<'END'\n%s\nEND\n" "$(quoted "${apply[@]}")" "$text"
        [[ ${DRY_RUN:-} == 1 ]] || "${apply[@]}" <<<"$text"
        finish "$NAME was submitted" "$SELF status"
        ;;
      *) finish "$NAME is running already" "$SELF status" ;;
    esac
    ;;
  status)
    run "${kube[@]}" get jobset,job,pod --selector="app=$NAME" --output=wide
    finish "that is $NAME" "$SELF logs"
    ;;
  logs)
    run "${kube[@]}" logs --follow --tail=100 --container=main --selector="app=$NAME,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
    finish "that was process 0 of $NAME" "$SELF status"
    ;;
  stop)
    remove
    finish "$NAME has saved and stopped, its node pools cost on" "$SELF run COMMAND, or $SELF delete"
    ;;
  delete)
    remove
    for each in $(pools); do
      [[ ${DRY_RUN:-} != 1 && -z $(pool "$each") ]] ||
        run gcloud container node-pools delete "$each" "${where[@]}" --quiet
    done
    finish "$NAME and its node pools are gone; $CLUSTER and gs://$BUCKET stay" "$SELF create"
    ;;
  *) fail "expected $SELF create|run COMMAND…|status|logs|stop|delete, got '$verb'." ;;
esac
