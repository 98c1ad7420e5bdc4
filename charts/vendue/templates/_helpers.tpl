{{/* Whether this cluster's users buy. */}}
{{- define "vendue.home" -}}
{{- if or (eq .Values.profile "home") (eq .Values.profile "both") }}true{{ end -}}
{{- end -}}

{{/* Whether this cluster sells. */}}
{{- define "vendue.provider" -}}
{{- if or (eq .Values.profile "provider") (eq .Values.profile "both") }}true{{ end -}}
{{- end -}}

{{- define "vendue.image" -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}

{{/* Labels of every object. Call with (dict "root" $ "component" "auction"). */}}
{{- define "vendue.labels" -}}
{{ include "vendue.selector" . }}
app.kubernetes.io/part-of: vendue
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{/* Labels that select a component's Pods. */}}
{{- define "vendue.selector" -}}
app.kubernetes.io/name: vendue-{{ .component }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end -}}

{{- define "vendue.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: { type: RuntimeDefault }
{{- end -}}

{{- define "vendue.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end -}}

{{/* Environment that every process reads. Call with (dict "root" $ "port" 9471). */}}
{{- define "vendue.commonEnv" -}}
# Each of the C library's arenas keeps what was freed in it; two are enough for a few threads.
- { name: MALLOC_ARENA_MAX, value: "2" }
- name: VENDUE_NAMESPACE
  valueFrom: { fieldRef: { fieldPath: metadata.namespace } }
- name: POD_NAME
  valueFrom: { fieldRef: { fieldPath: metadata.name } }
- { name: VENDUE_LISTEN, value: "0.0.0.0:{{ .port }}" }
- { name: VENDUE_LOG, value: {{ .root.Values.log.level | quote }} }
- { name: VENDUE_LOG_FORMAT, value: {{ .root.Values.log.format | quote }} }
{{- end -}}

{{- define "vendue.probes" -}}
startupProbe:
  httpGet: { path: /healthz, port: metrics }
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet: { path: /healthz, port: metrics }
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: { path: /readyz, port: metrics }
  periodSeconds: 2
  timeoutSeconds: 2
{{- end -}}

{{/* A size like 1Gi in MiB. */}}
{{- define "vendue.mib" -}}
{{- $unit := index (dict "Mi" 1 "Gi" 1024 "Ti" 1048576) (regexFind "[MGT]i$" .) -}}
{{- mul $unit (regexFind "^[0-9]+" . | int64) -}}
{{- end -}}

{{/* The length in MiB above which the seat's log keeps only what a restart needs: half of what fault proofs, at most 64 MiB, leave of its volume. */}}
{{- define "vendue.logMaxMib" -}}
{{- $size := .Values.auction.log.size -}}
{{- $mib := include "vendue.mib" $size | int64 -}}
{{- if lt $mib 256 -}}
{{- fail (printf "auction.log.size: %s is too little for open rounds and 64 MiB of fault proofs; accepted: 256Mi and more" $size) -}}
{{- end -}}
{{- div (sub $mib 64) 2 -}}
{{- end -}}

{{/* Annotations of a Pod. Call with (dict "root" $ "port" 9471 "extra" (dict ...)). */}}
{{- define "vendue.podAnnotations" -}}
{{- $all := deepCopy .extra -}}
{{- if .root.Values.metrics.scrapeAnnotations -}}
{{- $_ := set $all "prometheus.io/scrape" "true" -}}
{{- $_ := set $all "prometheus.io/port" (toString .port) -}}
{{- $_ := set $all "prometheus.io/path" "/metrics" -}}
{{- end -}}
{{- with $all }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "vendue.scheduling" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{- define "vendue.marketConfigMap" -}}
{{- default "vendue-market" .Values.market.existingConfigMap -}}
{{- end -}}

{{/* A Secret's data with a certificate for a Service and the authority that signed it. `lookup` keeps what is there, so that an upgrade changes nothing. Call with (dict "root" $ "secret" "vendue-stream-tls" "authority" "vendue-stream-ca" "service" "vendue-auction-stream" "days" 3650). */}}
{{- define "vendue.certificate" -}}
{{- $namespace := .root.Release.Namespace -}}
{{- $old := lookup "v1" "Secret" $namespace .secret -}}
{{- if and $old (hasKey (default dict $old.data) "ca.crt") -}}
{{- $old.data | toYaml -}}
{{- else -}}
{{- $host := printf "%s.%s.svc" .service $namespace -}}
{{- $ca := genCA .authority (.days | int) -}}
{{- $names := list .service (printf "%s.%s" .service $namespace) $host (printf "%s.cluster.local" $host) -}}
{{- $cert := genSignedCert $host nil $names (.days | int) $ca -}}
{{- dict "ca.crt" ($ca.Cert | b64enc) "tls.crt" ($cert.Cert | b64enc) "tls.key" ($cert.Key | b64enc) | toYaml -}}
{{- end -}}
{{- end -}}
