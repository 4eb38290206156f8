package metrics

import (
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Numbers of fields in the interface's api.proto.
const (
	ofPods          protowire.Number = 1 // in ListPodSandboxMetricsResponse
	ofID            protowire.Number = 1 // in PodSandboxMetrics and in ContainerMetrics
	ofMetrics       protowire.Number = 2 // likewise
	ofContainers    protowire.Number = 3 // in PodSandboxMetrics
	ofMetricName    protowire.Number = 1
	ofMetricTime    protowire.Number = 2
	ofMetricType    protowire.Number = 3
	ofMetricLabel   protowire.Number = 4
	ofMetricValue   protowire.Number = 5
	ofUInt64ValueIs protowire.Number = 1
)

// encoded are pods with their metrics as they go over the wire: a
// ListPodSandboxMetricsResponse, and where in it each pod's message is. There are
// some hundred metrics of each pod, which all begin with the same labels: to write
// them is a third of the work that it is to make messages and have those written.
type encoded struct {
	all  []byte
	pods []span
}

type span struct{ from, to int }

// response is a message that consists of what is written already. Who reads its
// fields must have it written and read: until then they are nothing to it but
// bytes.
func (e encoded) response() *cri.ListPodSandboxMetricsResponse {
	r := &cri.ListPodSandboxMetricsResponse{}
	r.ProtoReflect().SetUnknown(e.all)
	return r
}

// each are the messages of pods, made likewise.
func (e encoded) each() []*cri.PodSandboxMetrics {
	list := make([]*cri.PodSandboxMetrics, len(e.pods))
	for i, at := range e.pods {
		list[i] = &cri.PodSandboxMetrics{}
		list[i].ProtoReflect().SetUnknown(e.all[at.from:at.to:at.to])
	}
	return list
}

// pen writes pods, one after the other.
type pen struct {
	encoded
	pod, told, one, labels, time []byte
}

// begin begins a pod.
func (p *pen) begin(id string) { p.pod = text(p.pod[:0], ofID, id) }

// add adds what was told of the pod as a whole.
func (p *pen) add(told []byte) { p.pod = append(p.pod, told...) }

// addContainer adds what was told of a container of the pod.
func (p *pen) addContainer(id string, told []byte) {
	p.pod = protowire.AppendTag(p.pod, ofContainers, protowire.BytesType)
	p.pod = protowire.AppendVarint(p.pod, uint64(protowire.SizeTag(ofID)+protowire.SizeBytes(len(id))+len(told))) //nolint:gosec // a length
	p.pod = append(text(p.pod, ofID, id), told...)
}

// end ends the pod.
func (p *pen) end() {
	p.all = protowire.AppendBytes(protowire.AppendTag(p.all, ofPods, protowire.BytesType), p.pod)
	p.pods = append(p.pods, span{len(p.all) - len(p.pod), len(p.all)})
}

// join puts one after the other what two pens have written, for good.
func join(a, b *pen) encoded {
	e := encoded{make([]byte, 0, len(a.all)+len(b.all)), slices.Clone(a.pods)}
	e.all = append(append(e.all, a.all...), b.all...)
	for _, at := range b.pods {
		e.pods = append(e.pods, span{len(a.all) + at.from, len(a.all) + at.to})
	}
	return e
}

// tell writes what there is about a subject, which is good until the next.
func (p *pen) tell(table []metric, of subjects, x *subject, base []string) []byte {
	all, labels, time := p.told[:0], p.labels[:0], p.time[:0]
	for _, label := range base {
		labels = text(labels, ofMetricLabel, label)
	}
	if x.cached { // what was read just now has no time
		time = number64(time, ofMetricTime, uint64(x.Time.UnixNano())) //nolint:gosec // it is after 1970
	}
	for i := range table {
		m := &table[i]
		if m.of&of == 0 {
			continue
		}
		m.tell(x, func(value uint64, extra ...string) {
			one := append(text(p.one[:0], ofMetricName, m.name), time...)
			if m.kind != cri.MetricType_COUNTER {
				one = number64(one, ofMetricType, uint64(m.kind)) //nolint:gosec // an enumeration
			}
			one = append(one, labels...)
			for _, label := range extra {
				one = text(one, ofMetricLabel, label)
			}
			one = protowire.AppendTag(one, ofMetricValue, protowire.BytesType)
			if value == 0 {
				one = protowire.AppendVarint(one, 0)
			} else {
				one = protowire.AppendVarint(one, uint64(protowire.SizeTag(ofUInt64ValueIs)+protowire.SizeVarint(value))) //nolint:gosec // a length
				one = number64(one, ofUInt64ValueIs, value)
			}
			all = protowire.AppendTag(all, ofMetrics, protowire.BytesType)
			all = protowire.AppendBytes(all, one)
			p.one = one
		})
	}
	p.told, p.labels, p.time = all, labels, time
	return all
}

// text appends a field that is a string, which must be UTF-8.
func text(to []byte, field protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(to, field, protowire.BytesType), s)
}

func number64(to []byte, field protowire.Number, n uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(to, field, protowire.VarintType), n)
}
