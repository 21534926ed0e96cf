{{/* Every name begins with the release's, so that two installations share a namespace. */}}
{{- define "dreamhub.name" -}}
{{- if contains "dreamhub" .Release.Name -}}
{{- .Release.Name | trunc 30 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-dreamhub" (.Release.Name | trunc 21 | trimSuffix "-") -}}
{{- end -}}
{{- end -}}

{{/* Labels that never change in the life of a Deployment. Takes (dict "root" $ "component" "server"). */}}
{{- define "dreamhub.selector" -}}
app.kubernetes.io/name: dreamhub
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "dreamhub.labels" -}}
{{ include "dreamhub.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "dreamhub.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{/* A new pod is ready before an old one goes. */}}
{{- define "dreamhub.rollout" -}}
revisionHistoryLimit: 5
strategy:
  type: RollingUpdate
  rollingUpdate:
    maxSurge: 1
    maxUnavailable: 0
{{- end -}}

{{/*
A process's own secrets, as files that its settings read: key of the Secret, then name of the file.
The application logs in with its own role of the database, and no process gets another's login.
*/}}
{{- define "dreamhub.secretFiles" -}}
required:
{{- if eq .process "server" }}
  app-dsn: db__dsn
  redis-url: redis__url
  platform-token: auth__platform_token
  jwt-secret: auth__jwt_secret
{{- else if eq .process "worker" }}
  worker-dsn: db__dsn
  redis-url: redis__url
{{- else if eq .process "relay" }}
  relay-dsn: db__dsn
  redis-url: redis__url
{{- else if eq .process "migrate" }}
  owner-dsn: db__owner_dsn
{{- end }}
optional:
{{- if or (eq .process "server") (eq .process "worker") }}
  ai-api-key: ai__api_key
  blobs-access-key: blobs__access_key
  blobs-secret-key: blobs__secret_key
{{- else }} {}
{{- end }}
{{- end -}}

{{/*
A pod of one process. Takes: root, component, process, args, resources, and where they apply port, probes
(path of the readiness probe), env (more variables), scratch (path → size of folders to write to), drain (seconds).
*/}}
{{- define "dreamhub.pod" -}}
{{- $root := .root -}}
{{- $withSecrets := ne .process "models" -}}
metadata:
  labels:
    {{- include "dreamhub.labels" . | nindent 4 }}
    {{- with $root.Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $root.Values.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ if eq .process "migrate" }}default{{ else }}{{ include "dreamhub.name" $root }}{{ end }}
  automountServiceAccountToken: false
  # Service links would add variables such as DREAMHUB_SERVER_PORT, which are no settings and stop the start.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ add 15 (default 15 .drain) }}
  {{- with $root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    runAsGroup: 10001
    fsGroup: 10001
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile:
      type: RuntimeDefault
  containers:
    - name: {{ .process }}
      image: {{ include "dreamhub.image" $root | quote }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      args: {{ toJson .args }}
      securityContext:
        allowPrivilegeEscalation: false
        privileged: false
        readOnlyRootFilesystem: true
        runAsNonRoot: true
        capabilities:
          drop: [ALL]
      env:
        {{- $env := dict "DREAMHUB_ENV" $root.Values.env "DREAMHUB_HOME" "/var/lib/dreamhub" -}}
        {{- if $withSecrets }}{{ $_ := set $env "DREAMHUB_SECRETS_DIR" "/run/secrets/dreamhub" }}{{ end -}}
        {{- $own := printf "http://%s-models:%v" (include "dreamhub.name" $root) $root.Values.models.port -}}
        {{- $_ := set $env "MODELS__URL" (default $own $root.Values.models.url) -}}
        {{- $env = mergeOverwrite $env (deepCopy $root.Values.config) (default dict .env) }}
        {{- range $name, $value := $env }}
        - name: {{ $name }}
          value: {{ $value | quote }}
        {{- end }}
      {{- with .port }}
      ports:
        - name: http
          containerPort: {{ . }}
      {{- end }}
      {{- with .probes }}
      startupProbe:
        httpGet: {path: /healthz, port: http}
        periodSeconds: 2
        timeoutSeconds: 2
        failureThreshold: 60
      livenessProbe:
        httpGet: {path: /healthz, port: http}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 3
      readinessProbe:
        httpGet: {path: {{ . }}, port: http}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 2
      lifecycle:
        # Endpoints forget a pod a moment after it is told to stop.
        preStop:
          exec: {command: [sleep, "5"]}
      {{- end }}
      resources:
        {{- toYaml .resources | nindent 8 }}
      volumeMounts:
        {{- if $withSecrets }}
        - name: secrets
          mountPath: /run/secrets/dreamhub
          readOnly: true
        {{- end }}
        - name: tmp
          mountPath: /tmp
        {{- range $path, $size := .scratch }}
        - name: {{ base $path }}
          mountPath: {{ $path }}
        {{- end }}
  volumes:
    {{- if $withSecrets }}
    {{- $files := include "dreamhub.secretFiles" . | fromYaml }}
    - name: secrets
      projected:
        defaultMode: 0440
        sources:
          - secret:
              name: {{ $root.Values.secrets.existingSecret }}
              items:
                {{- range $key, $path := $files.required }}
                - {key: {{ $key }}, path: {{ $path }}}
                {{- end }}
          {{- if $files.optional }}
          - secret:
              name: {{ $root.Values.secrets.existingSecret }}
              optional: true
              items:
                {{- range $key, $path := $files.optional }}
                - {key: {{ $key }}, path: {{ $path }}}
                {{- end }}
          {{- end }}
    {{- end }}
    - name: tmp
      emptyDir:
        sizeLimit: 2Gi
    {{- range $path, $size := .scratch }}
    - name: {{ base $path }}
      emptyDir:
        sizeLimit: {{ $size }}
    {{- end }}
  {{- with $root.Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $root.Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $root.Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "dreamhub.selector" . | nindent 10 }}
{{- end -}}

{{/* A drain of a node takes one pod of a component at a time. */}}
{{- define "dreamhub.disruption" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "dreamhub.name" .root }}-{{ .component }}
  labels:
    {{- include "dreamhub.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels:
      {{- include "dreamhub.selector" . | nindent 6 }}
{{- end -}}

{{/* A Deployment around "dreamhub.pod", with its disruption budget. Takes what the pod takes, and replicas. */}}
{{- define "dreamhub.deployment" -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "dreamhub.name" .root }}-{{ .component }}
  labels:
    {{- include "dreamhub.labels" . | nindent 4 }}
spec:
  replicas: {{ .replicas }}
  {{- include "dreamhub.rollout" . | nindent 2 }}
  selector:
    matchLabels:
      {{- include "dreamhub.selector" . | nindent 6 }}
  template:
    {{- include "dreamhub.pod" . | nindent 4 }}
---
{{ include "dreamhub.disruption" . }}
{{- end -}}

{{/* A Service in front of one component. Takes root, component, type, port. */}}
{{- define "dreamhub.service" -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "dreamhub.name" .root }}-{{ .component }}
  labels:
    {{- include "dreamhub.labels" . | nindent 4 }}
spec:
  type: {{ .type }}
  ports:
    - name: http
      port: {{ .port }}
      targetPort: http
  selector:
    {{- include "dreamhub.selector" . | nindent 4 }}
{{- end -}}
