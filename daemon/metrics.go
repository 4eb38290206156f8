package daemon

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"berth/node/container"
	"berth/spec"
)

// metrics is what Prometheus is told of a node.
type metrics struct {
	registry *prometheus.Registry
	events   *prometheus.CounterVec
	runtime  *prometheus.HistogramVec
	damage   *prometheus.CounterVec
	cri      *criMetrics
}

func newMetrics(version spec.Version) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_events_total", Help: "What happened on the node, by type and action (container start, container oom, image pull, …).",
		}, []string{"type", "action"}),
		runtime: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "berth_runtime_seconds", Help: "Time that OCI runtimes took, by operation (run, exec, delete, …) and outcome.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		}, []string{"runtime", "operation", "outcome"}),
		damage: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_scrub_damaged_total", Help: "Damage that scrubs found, by part (object, metadata, layer, blob) and whether it was repaired.",
		}, []string{"part", "repaired"}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "berth_build_info", Help: "Always 1.",
		ConstLabels: prometheus.Labels{"version": version.Version, "commit": version.Commit, "go": version.GoVersion},
	})
	build.Set(1)
	m.registry.MustRegister(build, m.events, m.runtime, m.damage,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.cri = newCRIMetrics(m.registry)
	return m
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{Registry: m.registry})
}

// publisher passes events on and counts them.
type publisher struct {
	container.Events
	count   *prometheus.CounterVec
	removed func(given bool) // called when a container is gone, with whether a client wrote its spec; must not wait
}

func (p publisher) Publish(kind, action, id string, attrs map[string]string) {
	name, _, _ := strings.Cut(action, ":") // exec_create: the command
	p.count.WithLabelValues(kind, name).Inc()
	p.Events.Publish(kind, action, id, attrs)
	if kind == "container" && action == "destroy" {
		p.removed(attrs["given"] == "true")
	}
}

// timed is a runtime whose operations are measured.
type timed struct {
	container.Runtime
	seconds *prometheus.HistogramVec
}

func (t timed) observe(operation string, start time.Time, err *error) {
	outcome := "ok"
	if *err != nil {
		outcome = "failed"
	}
	t.seconds.WithLabelValues(t.Name(), operation, outcome).Observe(time.Since(start).Seconds())
}

func (t timed) Run(ctx context.Context, l container.Launch) (_ *container.Process, err error) {
	defer t.observe("run", time.Now(), &err)
	return t.Runtime.Run(ctx, l)
}

func (t timed) Create(ctx context.Context, l container.Launch) (_ *container.Process, err error) {
	defer t.observe("create", time.Now(), &err)
	return t.Runtime.Create(ctx, l)
}

func (t timed) Start(ctx context.Context, id string) (err error) {
	defer t.observe("start", time.Now(), &err)
	return t.Runtime.Start(ctx, id)
}

func (t timed) Exec(ctx context.Context, l container.ExecLaunch) (_ *container.Process, err error) {
	defer t.observe("exec", time.Now(), &err)
	return t.Runtime.Exec(ctx, l)
}

func (t timed) Signal(ctx context.Context, id string, sig syscall.Signal, all bool) (err error) {
	defer t.observe("signal", time.Now(), &err)
	return t.Runtime.Signal(ctx, id, sig, all)
}

func (t timed) Update(ctx context.Context, id string, r *specs.LinuxResources) (err error) {
	defer t.observe("update", time.Now(), &err)
	return t.Runtime.Update(ctx, id, r)
}

func (t timed) Delete(ctx context.Context, id string) (err error) {
	defer t.observe("delete", time.Now(), &err)
	return t.Runtime.Delete(ctx, id)
}

// timedOCI is a timed runtime that can do what the programs of OCI can.
type timedOCI struct {
	timed
	container.Checkpointer
	featured
}

// featured says what a runtime can do, as the OCI runtime spec's JSON.
type featured interface {
	Features(ctx context.Context) ([]byte, error)
}

// census counts a node's containers and reads what they use, when asked.
type census struct {
	containers *container.Set
	log        *slog.Logger
	ctx        context.Context //nolint:containedctx // Prometheus hands none in

	states, cpu, memory, limit, pids, oom, read, written, received, sent *prometheus.Desc
}

func newCensus(ctx context.Context, containers *container.Set, log *slog.Logger) *census {
	of := func(name, help string, more ...string) *prometheus.Desc {
		return prometheus.NewDesc("berth_container_"+name, help, append([]string{"id", "name"}, more...), nil)
	}
	return &census{
		containers: containers, log: log, ctx: ctx,
		states:   prometheus.NewDesc("berth_containers", "Containers of the node, by state.", []string{"state"}, nil),
		cpu:      of("cpu_seconds_total", "CPU time used."),
		memory:   of("memory_bytes", "Memory in use, page cache that can be dropped left out."),
		limit:    of("memory_limit_bytes", "Memory limit; the machine's memory where there is none."),
		pids:     of("processes", "Processes and threads."),
		oom:      of("oom_kills_total", "Processes killed for lack of memory."),
		read:     of("read_bytes_total", "Bytes read from block devices."),
		written:  of("written_bytes_total", "Bytes written to block devices."),
		received: of("received_bytes_total", "Bytes received, by interface.", "interface"),
		sent:     of("sent_bytes_total", "Bytes sent, by interface.", "interface"),
	}
}

// Describe implements prometheus.Collector.
func (c *census) Describe(out chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, out) }

// Collect implements prometheus.Collector.
func (c *census) Collect(out chan<- prometheus.Metric) {
	all, err := c.containers.List(c.ctx, true, nil)
	if err != nil {
		c.log.WarnContext(c.ctx, "metrics without containers", "err", err)
		return
	}
	counts := map[spec.State]int{spec.Created: 0, spec.Running: 0, spec.Paused: 0, spec.Restarting: 0, spec.Stopped: 0}
	for _, one := range all {
		counts[one.State.Status]++
	}
	for state, n := range counts {
		out <- prometheus.MustNewConstMetric(c.states, prometheus.GaugeValue, float64(n), string(state))
	}
	stats, err := c.containers.Stats(c.ctx, nil)
	if err != nil {
		c.log.WarnContext(c.ctx, "metrics without statistics", "err", err)
		return
	}
	for _, s := range stats {
		c.one(out, s)
	}
}

func (c *census) one(out chan<- prometheus.Metric, s spec.Stats) {
	tell := func(desc *prometheus.Desc, kind prometheus.ValueType, value float64, more ...string) {
		out <- prometheus.MustNewConstMetric(desc, kind, value, append([]string{s.ID, s.Name}, more...)...)
	}
	tell(c.cpu, prometheus.CounterValue, float64(s.CPU.Total)/1e9)
	tell(c.memory, prometheus.GaugeValue, float64(s.Memory.Usage))
	tell(c.limit, prometheus.GaugeValue, float64(s.Memory.Limit))
	tell(c.pids, prometheus.GaugeValue, float64(s.Pids.Current))
	tell(c.oom, prometheus.CounterValue, float64(s.Memory.OOMKills))
	tell(c.read, prometheus.CounterValue, float64(s.IO.ReadBytes))
	tell(c.written, prometheus.CounterValue, float64(s.IO.WriteBytes))
	for _, n := range s.Network {
		tell(c.received, prometheus.CounterValue, float64(n.RxBytes), n.Name)
		tell(c.sent, prometheus.CounterValue, float64(n.TxBytes), n.Name)
	}
}
