package metrics

import (
	"bytes"

	"google.golang.org/protobuf/encoding/protowire"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Numbers of fields in the interface's api.proto.
const (
	ofMetrics       protowire.Number = 2 // in PodSandboxMetrics and in ContainerMetrics
	ofMetricName    protowire.Number = 1
	ofMetricTime    protowire.Number = 2
	ofMetricType    protowire.Number = 3
	ofMetricLabel   protowire.Number = 4
	ofMetricValue   protowire.Number = 5
	ofUInt64ValueIs protowire.Number = 1
)

// encoded are metrics as they go over the wire, as the field that the messages
// of a pod and of a container have for them. There are some hundred of each
// pod, which all begin with the same labels: to write them is a third of the
// work that it is to make messages and have those written.
type encoded []byte

// put has a message carry metrics. Who reads them must have the message written
// and read: until then they are nothing to it but bytes.
func (e encoded) put(into *cri.ContainerMetrics) { into.ProtoReflect().SetUnknown([]byte(e)) }

func (e encoded) putPod(into *cri.PodSandboxMetrics) { into.ProtoReflect().SetUnknown([]byte(e)) }

// pen writes metrics, one subject after the other.
type pen struct{ all, one, labels, time []byte }

// tell says what there is about a subject.
func (p *pen) tell(table []metric, of subjects, x *subject, base []string) encoded {
	all, labels, time := p.all[:0], p.labels[:0], p.time[:0]
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
	p.all, p.labels, p.time = all, labels, time
	return bytes.Clone(all)
}

// text appends a field that is a string, which must be UTF-8.
func text(to []byte, field protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(to, field, protowire.BytesType), s)
}

func number64(to []byte, field protowire.Number, n uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(to, field, protowire.VarintType), n)
}
