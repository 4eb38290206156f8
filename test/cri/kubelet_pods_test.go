package cri

// web is a Deployment with every kind of probe.
const web = `
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {greeting: hello from a volume}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web, steady: "yes"}}
    spec:
      terminationGracePeriodSeconds: 5
      initContainers:
      - {name: first, image: "registry.k8s.io/e2e-test-images/busybox:1.29-2", command: [sh, -c, "echo made > /shared/file"], volumeMounts: [{name: shared, mountPath: /shared}]}
      containers:
      - name: nginx
        image: registry.k8s.io/e2e-test-images/nginx:1.14-2
        env: [{name: ROUND, value: "ONE"}]
        ports: [{containerPort: 80}]
        resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {memory: 64Mi}}
        startupProbe: {tcpSocket: {port: 80}, periodSeconds: 1}
        readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}
        livenessProbe: {exec: {command: [cat, /shared/file]}, periodSeconds: 1, timeoutSeconds: 5}
        volumeMounts: [{name: shared, mountPath: /shared}, {name: settings, mountPath: /settings}]
      volumes: [{name: shared, emptyDir: {}}, {name: settings, configMap: {name: settings}}]
`

// other is pods for the rest of what kubelet asks of a runtime.
const other = `
apiVersion: v1
kind: Pod
metadata: {name: crash}
spec:
  containers: [{name: c, image: "registry.k8s.io/e2e-test-images/busybox:1.29-2", command: [sh, -c, "echo last words > /dev/termination-log; exit 3"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: mapped, labels: {steady: "yes"}}
spec:
  hostUsers: false
  securityContext: {fsGroup: 2345, runAsUser: 1000}
  containers: [{name: c, image: "registry.k8s.io/e2e-test-images/busybox:1.29-2", command: [sh, -c, "touch /v/x; exec sleep 1000"], volumeMounts: [{name: v, mountPath: /v}]}]
  volumes: [{name: v, emptyDir: {}}]
---
apiVersion: v1
kind: Pod
metadata: {name: several, labels: {steady: "yes"}}
spec:
  shareProcessNamespace: true
  securityContext: {runAsUser: 1000, runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
  containers:
  - {name: a, image: "registry.k8s.io/e2e-test-images/busybox:1.29-2", command: [sleep, "1234"], lifecycle: {postStart: {exec: {command: [touch, /tmp/began]}}}, securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}}
  - {name: b, image: "registry.k8s.io/e2e-test-images/busybox:1.29-2", command: [sleep, "1000"], volumeMounts: [{name: i, mountPath: /image}]}
  volumes: [{name: i, image: {reference: "gcr.io/k8s-staging-cri-tools/test-image-1:latest"}}]
---
apiVersion: v1
kind: Pod
metadata: {name: host, labels: {steady: "yes"}}
spec:
  hostNetwork: true
  containers: [{name: c, image: "registry.k8s.io/e2e-test-images/busybox:1.29-2", command: [sleep, "1000"]}]
`

// further pods are about volumes, ends, limits, and what goes wrong.
const further = `
apiVersion: v1
kind: Pod
metadata: {name: everything, labels: {app: everything, steady: "yes"}}
spec:
  terminationGracePeriodSeconds: 2
  hostname: name
  subdomain: sub
  securityContext: {fsGroup: 2345, sysctls: [{name: net.ipv4.ip_local_port_range, value: "2000 3000"}]}
  initContainers:
  - {name: first, image: "registry.k8s.io/e2e-test-images/busybox:1.29-2", command: [sh, -c, "echo made first > /w/first"], volumeMounts: [{name: w, mountPath: /w}]}
  - name: beside
    restartPolicy: Always
    image: registry.k8s.io/e2e-test-images/busybox:1.29-2
    command: [sh, -c, "echo begun by the one beside > /w/beside; trap 'exit 0' TERM; while :; do sleep 0.2; done"]
    startupProbe: {exec: {command: [cat, /w/beside]}, periodSeconds: 1}
    volumeMounts: [{name: w, mountPath: /w}]
  containers:
  - name: main
    image: registry.k8s.io/e2e-test-images/busybox:1.29-2
    command: [sh, -c, "cat /w/beside /w/first; echo $POD $IP $MEM $CPU $NODE; trap 'exit 0' TERM; while :; do sleep 0.2; done"]
    env:
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: MEM, valueFrom: {resourceFieldRef: {resource: limits.memory}}}
    - {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1m}}}
    resources: {requests: {cpu: 50m, memory: 32Mi}, limits: {cpu: 200m, memory: 64Mi}}
    securityContext: {readOnlyRootFilesystem: true}
    volumeMounts:
    - {name: w, mountPath: /w}
    - {name: w, mountPath: /sub, subPath: deep/er}
    - {name: mem, mountPath: /mem}
    - {name: info, mountPath: /info}
    - {name: api, mountPath: /api}
  - {name: nginx, image: "registry.k8s.io/e2e-test-images/nginx:1.14-2", ports: [{containerPort: 80, hostPort: 12080}]}
  volumes:
  - {name: w, emptyDir: {}}
  - {name: mem, emptyDir: {medium: Memory, sizeLimit: 8Mi}}
  - {name: info, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  - {name: api, projected: {sources: [{serviceAccountToken: {path: token}}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: anew, labels: {steady: "yes"}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: a, image: "registry.k8s.io/e2e-test-images/busybox:1.29-2", command: [sleep, "1000"], resizePolicy: [{resourceName: memory, restartPolicy: RestartContainer}], resources: {limits: {memory: 32Mi}}}]
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: crun}
handler: crun
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: nothere}
handler: nothere
---
apiVersion: v1
kind: Pod
metadata: {name: crun, labels: {steady: "yes"}}
spec:
  runtimeClassName: crun
  terminationGracePeriodSeconds: 1
  containers: [{name: a, image: "registry.k8s.io/e2e-test-images/busybox:1.29-2", command: [sleep, "1000"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: signal}
spec:
  os: {name: linux}
  terminationGracePeriodSeconds: 120
  containers: [{name: a, image: "registry.k8s.io/e2e-test-images/busybox:1.29-2", command: [sh, -c, "trap 'exit 0' USR1; while :; do sleep 0.1; done"], lifecycle: {stopSignal: SIGUSR1}}]
---
apiVersion: batch/v1
kind: Job
metadata: {name: three}
spec:
  completions: 3
  parallelism: 2
  template: {spec: {restartPolicy: Never, containers: [{name: c, image: "registry.k8s.io/e2e-test-images/busybox:1.29-2", command: [date]}]}}
---
apiVersion: batch/v1
kind: Job
metadata: {name: fails}
spec:
  backoffLimit: 0
  template: {spec: {restartPolicy: Never, containers: [{name: c, image: "registry.k8s.io/e2e-test-images/busybox:1.29-2", command: [sh, -c, "echo why it failed; exit 4"], terminationMessagePolicy: FallbackToLogsOnError}]}}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: each}
spec:
  schedule: "* * * * *"
  jobTemplate: {spec: {template: {spec: {restartPolicy: OnFailure, containers: [{name: c, image: "registry.k8s.io/e2e-test-images/busybox:1.29-2", command: [date]}]}}}}
---
apiVersion: v1
kind: Pod
metadata: {name: greedy}
spec:
  restartPolicy: Never
  containers: [{name: c, image: "registry.k8s.io/e2e-test-images/busybox:1.29-2", command: [dd, if=/dev/zero, of=/dev/null, bs=100M], resources: {limits: {memory: 16Mi}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: late}
spec:
  activeDeadlineSeconds: 5
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: "registry.k8s.io/e2e-test-images/busybox:1.29-2", command: [sleep, "1000"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: ruled}
spec:
  restartPolicy: Never
  containers: [{name: c, image: "registry.k8s.io/e2e-test-images/busybox:1.29-2", command: [sh, -c, "exit 42"], restartPolicy: Never, restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [42]}}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: big}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: "registry.k8s.io/e2e-test-images/busybox:1.29-2", command: [sh, -c, "dd if=/dev/zero of=/big bs=1M count=40; sleep 1000"], resources: {limits: {ephemeral-storage: 20Mi}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: noimage}
spec:
  containers: [{name: c, image: "registry.k8s.io/e2e-test-images/nothere:1"}]
---
apiVersion: v1
kind: Pod
metadata: {name: nocommand}
spec:
  containers: [{name: c, image: "registry.k8s.io/e2e-test-images/busybox:1.29-2", command: [/nothere]}]
---
apiVersion: v1
kind: Pod
metadata: {name: noroot}
spec:
  securityContext: {runAsNonRoot: true}
  containers: [{name: c, image: "registry.k8s.io/e2e-test-images/busybox:1.29-2", command: [sleep, "1000"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: noruntime}
spec:
  runtimeClassName: nothere
  containers: [{name: c, image: "registry.k8s.io/e2e-test-images/busybox:1.29-2", command: [sleep, "1000"]}]
`
