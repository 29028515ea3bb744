#!/usr/bin/env bash
# On each host of a TPU slice, where tpu.sh sends it: mounts the bucket and starts the container.
#   tpu_host.sh NAME IMAGE BUCKET MAX_RESTARTS COMMAND…
set -euo pipefail
name=$1 image=$2 bucket=$3 restarts=$4
shift 4
apt=https://packages.cloud.google.com/apt key=/usr/share/keyrings/cloud.google.asc
mount=/mnt/bucket

if [[ $(sudo docker inspect --format='{{.State.Running}}' "$name" 2>/dev/null) == true ]]; then
  echo "$(hostname): $name is running already"
  exit 0
fi
if ! command -v gcsfuse >/dev/null; then
  curl --fail --silent --show-error "$apt/doc/apt-key.gpg" | sudo tee $key >/dev/null
  echo "deb [signed-by=$key] $apt gcsfuse-$(lsb_release --codename --short) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get update --quiet
  sudo apt-get install --quiet --yes gcsfuse
fi
# No cache of names: what one host writes, the others look for at once.
if ! mountpoint --quiet $mount; then
  sudo mkdir --parents $mount
  sudo gcsfuse -o allow_other --implicit-dirs --metadata-cache-ttl-secs=0 \
    --metadata-cache-negative-ttl-secs=0 "$bucket" $mount
fi
[[ $image != *.pkg.dev/* ]] || sudo gcloud auth configure-docker "${image%%/*}" --quiet
sudo docker pull --quiet "$image"
sudo docker rm --force "$name" >/dev/null 2>&1 || true
# docker restarts whatever is not 0, so what would be the same the next time has to look like 0.
sudo docker run --detach --name="$name" --restart="on-failure:$restarts" --env=EXIT_ON_MISTAKE=0 \
  --privileged --net=host --ipc=host --volume=$mount:/bucket "$image" "$@"
echo "$(hostname): $name runs"
