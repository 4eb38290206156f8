package daemon

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/status"

	"berth/base/errs"
	"berth/node/image"
	"berth/node/seccomp"
	"berth/spec"
)

// criMetrics is what Prometheus is told of how the node serves Kubernetes.
type criMetrics struct {
	operations, failures *prometheus.CounterVec
	latency              *prometheus.HistogramVec

	pullBytes    prometheus.Counter
	pullSeconds  *prometheus.HistogramVec
	pullFailures *prometheus.CounterVec
	ooms         *prometheus.CounterVec
}

// fromMillisecond are bounds of times from a millisecond to two minutes.
func fromMillisecond() []float64 { return prometheus.ExponentialBuckets(0.001, 2, 18) }

func newCRIMetrics(registry *prometheus.Registry) *criMetrics {
	m := &criMetrics{
		operations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_cri_operations_total", Help: "Calls of the Container Runtime Interface, by operation.",
		}, []string{"operation"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_cri_operations_errors_total", Help: "Calls of the Container Runtime Interface that failed, by operation and gRPC code.",
		}, []string{"operation", "code"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "berth_cri_operations_latency_seconds", Help: "Time that calls of the Container Runtime Interface took, by operation.",
			Buckets: fromMillisecond(),
		}, []string{"operation"}),
		pullBytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "berth_image_pulls_bytes_total", Help: "Bytes of layers that came from registries while images were pulled.",
		}),
		pullSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "berth_image_pulls_seconds", Help: "Time that pulls of images took, by outcome.",
			Buckets: fromMillisecond(),
		}, []string{"outcome"}),
		pullFailures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_image_pulls_failures_total", Help: "Pulls of images that failed, by the kind of error.",
		}, []string{"kind"}),
		ooms: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_containers_oom_total", Help: "Times that a container lost a process for lack of memory, by its pod's namespace; empty outside of pods.",
		}, []string{"namespace"}),
	}
	registry.MustRegister(m.operations, m.failures, m.latency, m.pullBytes, m.pullSeconds, m.pullFailures, m.ooms)
	return m
}

// kubernetesCalls begin the names of the calls that are counted.
const kubernetesCalls = "/runtime.v1."

// ended counts a call. It is told of those of all protocols of the door.
func (m *criMetrics) ended(method string, took time.Duration, err error) {
	if !strings.HasPrefix(method, kubernetesCalls) {
		return
	}
	operation := method[strings.LastIndexByte(method, '/')+1:]
	m.operations.WithLabelValues(operation).Inc()
	m.latency.WithLabelValues(operation).Observe(took.Seconds())
	if err != nil {
		m.failures.WithLabelValues(operation, status.Code(err).String()).Inc()
	}
}

// pulled counts a pull.
func (m *criMetrics) pulled(p image.Pulled) {
	outcome := "ok"
	if p.Err != nil {
		outcome = "failed"
		m.pullFailures.WithLabelValues(string(errs.KindOf(p.Err))).Inc()
	}
	m.pullBytes.Add(float64(p.Bytes))
	m.pullSeconds.WithLabelValues(outcome).Observe(p.Took.Seconds())
}

// told counts what the bus tells.
func (m *criMetrics) told(e spec.Event) {
	if e.Type == "container" && e.Action == "oom" {
		// The name of a pod's container is "<namespace>/<pod>/<container>".
		namespace, _, inPod := strings.Cut(e.Attributes["name"], "/")
		if !inPod {
			namespace = ""
		}
		m.ooms.WithLabelValues(namespace).Inc()
	}
}

// podCensus counts a node's pods, and what is known of their containers, when
// asked.
type podCensus struct {
	pods interface {
		Pods() []spec.Pod
		Containers() []spec.PodContainer
	}
	watcher interface{ Counts() []seccomp.Count }
	// subscribers is how many clients listen to what happens to pods.
	subscribers func() int

	states, containers, calls, listening *prometheus.Desc
}

func newPodCensus(n *node) *podCensus {
	c := podDescs()
	c.pods, c.watcher = n.pods.set, n.pods.watcher
	if n.cri.server != nil {
		c.subscribers = n.cri.server.Subscribers
	}
	return c
}

func podDescs() *podCensus {
	return &podCensus{
		states:     prometheus.NewDesc("berth_pods", "Pods of the node, by state.", []string{"state"}, nil),
		containers: prometheus.NewDesc("berth_pod_containers", "Containers of pods, by state.", []string{"state"}, nil),
		calls: prometheus.NewDesc("berth_seccomp_notifier_count_total",
			"System calls that a watched container's profile forbids, by container and call.", []string{"name", "syscall"}, nil),
		listening: prometheus.NewDesc("berth_cri_event_subscribers", "Clients that listen to what happens to pods.", nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *podCensus) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.states, c.containers, c.calls, c.listening} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *podCensus) Collect(out chan<- prometheus.Metric) {
	pods := map[spec.PodState]int{spec.PodReady: 0, spec.PodNotReady: 0}
	for _, p := range c.pods.Pods() {
		pods[p.State]++
	}
	for state, n := range pods {
		out <- prometheus.MustNewConstMetric(c.states, prometheus.GaugeValue, float64(n), string(state))
	}
	containers := map[spec.State]int{spec.Created: 0, spec.Running: 0, spec.Stopped: 0}
	for _, one := range c.pods.Containers() {
		containers[one.State]++
	}
	for state, n := range containers {
		out <- prometheus.MustNewConstMetric(c.containers, prometheus.GaugeValue, float64(n), string(state))
	}
	type forbidden struct{ name, call string }
	calls := map[forbidden]uint64{}
	for _, n := range c.watcher.Counts() { // a name may have been another container's before
		calls[forbidden{n.Name, n.Syscall}] += n.Calls
	}
	for of, n := range calls {
		out <- prometheus.MustNewConstMetric(c.calls, prometheus.CounterValue, float64(n), of.name, of.call)
	}
	if c.subscribers != nil {
		out <- prometheus.MustNewConstMetric(c.listening, prometheus.GaugeValue, float64(c.subscribers()))
	}
}

// observePods has Prometheus told of pods.
func (n *node) observePods() {
	n.metrics.registry.MustRegister(newPodCensus(n))
	n.bus.Tap(n.metrics.cri.told)
}
