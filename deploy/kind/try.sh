#!/usr/bin/env bash
# A first tenant, an upload, a search and a question, through the service of the chart.
set -euo pipefail
folder=$(mktemp -d)
kubectl port-forward service/dreamhub-server 8000:80 >"$folder/forward.log" &
forward=$!
trap 'kill $forward; rm -rf "$folder"' EXIT
url=http://127.0.0.1:8000
curl --fail --silent --show-error --retry 30 --retry-delay 1 --retry-all-errors "$url/readyz" >/dev/null

token=$(kubectl get secret dreamhub -o jsonpath='{.data.platform-token}' | base64 -d)
key=$(curl --fail --silent -H "Authorization: Bearer $token" -H 'Content-Type: application/json' \
    -d '{"name":"Trial","owner_email":"owner@example.com"}' "$url/api/v1/tenants" | jq -r .api_key)
call() { curl --fail --silent --show-error -H "Authorization: Bearer $key" "$@"; }

printf 'The battery lasts nine hours. 电池可以使用九个小时。\n' >"$folder/battery.txt"
task=$(call -F "file=@$folder/battery.txt" "$url/api/v1/documents" | jq -r .task_id)
for _ in $(seq 120); do
    status=$(call "$url/api/v1/tasks/$task" | jq -r .status)
    case $status in succeeded) break ;; failed | dead | cancelled) exit 1 ;; esac
    sleep 1
done
test "$status" = succeeded

call -H 'Content-Type: application/json' -d '{"query":"电池可以用多久"}' "$url/api/v1/search" | jq -e '.items[0].filename == "battery.txt"'
conversation=$(call -H 'Content-Type: application/json' -d '{}' "$url/api/v1/conversations" | jq -r .id)
call -H 'Content-Type: application/json' -d '{"content":"How long does the battery last?"}' \
    "$url/api/v1/conversations/$conversation/messages" | jq -e '.citations | length > 0'
