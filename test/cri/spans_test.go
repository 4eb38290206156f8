package cri

import (
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// spans collects what nodes trace.
type spans struct {
	url string

	mu  sync.Mutex
	all []*trace.Span
}

func newSpans(t *testing.T) *spans {
	s := &spans{}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

func (s *spans) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var from io.Reader = r.Body
	if r.Header.Get("Content-Encoding") == "gzip" {
		if unzipped, err := gzip.NewReader(r.Body); err == nil {
			from = unzipped
		}
	}
	body, err := io.ReadAll(from)
	var request collector.ExportTraceServiceRequest
	if err != nil || proto.Unmarshal(body, &request) != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, resource := range request.GetResourceSpans() {
		for _, scope := range resource.GetScopeSpans() {
			s.all = append(s.all, scope.GetSpans()...)
		}
	}
}

// within is how many spans of that name a client has begun, and how many of the
// node's own lie within those.
func (s *spans) within(name string) (begun, children int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	parents := map[string]bool{}
	for _, span := range s.all {
		if span.GetName() == name && len(span.GetParentSpanId()) > 0 {
			parents[string(span.GetSpanId())] = true
		}
	}
	for _, span := range s.all {
		if parents[string(span.GetParentSpanId())] {
			children++
		}
	}
	return len(parents), children
}
