#!/usr/bin/env bash
# xpk, which makes GKE clusters and JobSets: launch/xpk.sh create|run COMMAND…|status|logs|stop|delete
# Optional: SPOT=1, SLICES=N, MAX_RESTARTS=N, CREATE_FLAGS='more flags of xpk'. See README.md.
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"

need NAME=mage PROJECT=my-project ZONE=us-west4-a CLUSTER=my-cluster TOPOLOGY=v5e:4x4 \
  IMAGE=us-docker.pkg.dev/my-project/my-images/unlearn_jax:tpu BUCKET=my-bucket
topology
where=("--project=$PROJECT" "--zone=$ZONE" "--cluster=$CLUSTER")
size=("--tpu-type=$TYPE" "--num-slices=${SLICES:-1}")
capacity=--on-demand
[[ ${SPOT:-} != 1 ]] || capacity=--spot
kube=(kubectl "--context=gke_${PROJECT}_${ZONE%-*}_$CLUSTER") # xpk's clusters are regional

verb=${1:-}
shift || true
case $verb in
  create) # xpk brings an existing cluster up to date
    # shellcheck disable=SC2086 # several flags
    run xpk cluster create "${where[@]}" "${size[@]}" $capacity --enable-workload-identity \
      --enable-gcsfuse-csi-driver ${CREATE_FLAGS:-}
    found=$(ask "${kube[@]}" get persistentvolume "$BUCKET-pv" --ignore-not-found --output=name)
    [[ -n $found ]] ||
      run xpk storage attach "$BUCKET" "${where[@]}" --type=gcsfuse "--bucket=$BUCKET" --size=1 \
        --mount-point=/bucket --readonly=false --auto-mount=true --no-prefetch-metadata \
        --mount-options=implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0
    finish "$CLUSTER has ${SLICES:-1} x $TOPOLOGY" "$SELF run COMMAND"
    ;;
  run)
    command_needed "$@"
    found=$(ask "${kube[@]}" get jobset "$NAME" --ignore-not-found \
      '--output=jsonpath={.metadata.name}:{.status.terminalState}')
    case $found in
      '' | *:?*) # none, or one that ended, which cannot be started again
        [[ -z $found ]] || run xpk workload delete "${where[@]}" "--workload=$NAME" --force
        # 1 to 4 (a mistake, refuted, damaged) do not start it again; 127 and more always do.
        run xpk workload create "${where[@]}" "${size[@]}" "--workload=$NAME" "--docker-image=$IMAGE" \
          "--command=exec launch/entry.sh $(quoted "$@" --distributed)" \
          "--max-restarts=${MAX_RESTARTS:-50}" --restart-on-exit-codes=5-126 \
          --termination-grace-period-seconds=300
        finish "$NAME was submitted" "$SELF status"
        ;;
      *) finish "$NAME is running already" "$SELF status" ;;
    esac
    ;;
  status)
    run xpk workload list "${where[@]}" "--filter-by-job=^$NAME\$"
    finish "that is $NAME" "$SELF logs"
    ;;
  logs)
    run "${kube[@]}" logs --follow --tail=100 --container=jax-tpu --selector="jobset.sigs.k8s.io/jobset-name=$NAME,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
    finish "that was process 0 of $NAME" "$SELF status"
    ;;
  stop)
    run xpk workload delete "${where[@]}" "--workload=$NAME" --force
    finish "$NAME saves and stops, $CLUSTER costs on" "$SELF run COMMAND, or $SELF delete"
    ;;
  delete)
    run xpk cluster delete "${where[@]}"
    finish "$CLUSTER and all that ran there is gone; gs://$BUCKET stays" "$SELF create"
    ;;
  *) fail "expected $SELF create|run COMMAND…|status|logs|stop|delete, got '$verb'." ;;
esac
