{{- define "rollcall.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "rollcall.labels" -}}
app.kubernetes.io/name: rollcall
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* How engines are reached. */}}
{{- define "rollcall.scheme" -}}
{{- if and .Values.engine.tls.secretName (ne .Values.engine.tls.changeOver "trust") -}}
https
{{- else -}}
http
{{- end -}}
{{- end -}}

{{- define "rollcall.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag }}{{ end }}
{{- end -}}
{{- end -}}

{{- define "rollcall.podSecurity" -}}
automountServiceAccountToken: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "rollcall.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{/*
Memory of an engine in GiB, by docs/sizing.md: 0.6 GiB, 0.09 GiB for each partition and each standby that a node has while one replica is
away, and 1 GiB for devices. At least 3.
*/}}
{{- define "rollcall.engineMemory" -}}
{{- $env := .Values.engine.env }}
{{- $all := int (default "4" $env.ROLLCALL_PARTITIONS) }}
{{- $here := $all }}
{{- if .Values.kafka.brokers }}
{{- $all = int .Values.kafka.partitions }}
{{- $left := int (max 1 (sub (int .Values.engine.replicas) 1)) }}
{{- $copies := int (add 1 (int (default "0" $env.ROLLCALL_STANDBYS))) }}
{{- $here = int (min $all (div (sub (add (mul $all $copies) $left) 1) $left)) }}
{{- end }}
{{- $mib := int (add 614 (mul 92 $here) 1024) }}
{{- max 3 (div (add $mib 1023) 1024) -}}
{{- end -}}

{{/* Resources of an engine: those of the values, and memory where they name none. */}}
{{- define "rollcall.engineResources" -}}
{{- $resources := .Values.engine.resources }}
{{- $limit := dig "limits" "memory" (printf "%sGi" (include "rollcall.engineMemory" .)) $resources }}
{{- $request := dig "requests" "memory" $limit $resources }}
{{- toYaml (merge (deepCopy $resources) (dict "requests" (dict "memory" $request) "limits" (dict "memory" $limit))) }}
{{- end -}}

{{/* Where pods of one kind may run: spread over machines, also when that is not fully possible. Takes root and component. */}}
{{- define "rollcall.placement" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "rollcall.labels" .root | nindent 8 }}
        app.kubernetes.io/component: {{ .component }}
{{- with .root.Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
