#!/usr/bin/env bash
# Installs the chart with throw-away dependencies into the current cluster: deploy/kind/install.sh IMAGE:TAG
set -euo pipefail
cd "$(dirname "$0")/../.."
image=${1:?image:tag}

kubectl create configmap roles --from-file=deploy/postgres/roles.sql
kubectl apply -f deploy/kind/dependencies.yaml
for name in postgres redis objects clamav; do kubectl rollout status "deployment/$name" --timeout=10m; done

kubectl exec deployment/postgres -- psql -U postgres \
    -v owner=trial -v app=trial -v worker=trial -v relay=trial -v backup=trial -f /roles/roles.sql
kubectl exec deployment/objects -- sh -c "echo 's3.bucket.create -name dreamhub' | weed shell"

login() { echo "postgresql://dreamhub_$1:trial@postgres:5432/dreamhub"; }
kubectl create secret generic dreamhub \
    --from-literal=app-dsn="$(login app)" --from-literal=worker-dsn="$(login worker)" \
    --from-literal=relay-dsn="$(login relay)" --from-literal=owner-dsn="$(login owner)" \
    --from-literal=redis-url=redis://:trial@redis:6379/0 \
    --from-literal=platform-token="$(openssl rand -hex 32)" --from-literal=jwt-secret="$(openssl rand -hex 32)" \
    --from-literal=blobs-access-key=any --from-literal=blobs-secret-key=any

helm install dreamhub deploy/helm/dreamhub --wait --timeout 10m \
    --set image.repository="${image%:*}" --set image.tag="${image##*:}" --set image.pullPolicy=Never \
    --set-string 'config.BLOBS__URL=s3://dreamhub?endpoint=http://objects:8333&region=us-east-1' \
    --set server.replicas=1 --set 'workers[0].name=all' --set 'workers[0].replicas=1' \
    --set 'workers[0].queues={high_priority,default,batch,learning}'
