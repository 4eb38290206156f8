// Package registrytest is a real registry for tests, on loopback and in
// memory, that can be told to misbehave; and images for it, made in memory.
package registrytest

import (
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/inmemory" // named below
	"github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"
)

// Registry is a registry that runs until its test is over.
type Registry struct {
	*httptest.Server

	mu       sync.Mutex
	faults   []*Fault
	requests []Request
}

// Request is one request that the registry got.
type Request struct {
	Method, Path, Query, Range, Authorization, Namespace string
}

// Fault is a way to misbehave.
type Fault struct {
	// Match says which requests; nil means all.
	Match func(*http.Request) bool
	// Times is how often; 0 means for ever.
	Times int
	// Handler answers instead of the registry; it may ask the registry by
	// calling next.
	Handler func(w http.ResponseWriter, r *http.Request, next http.Handler)

	done int
}

// New starts a registry that speaks plain HTTP.
func New(t testing.TB) *Registry { return start(t, (*httptest.Server).Start) }

// NewTLS starts one that speaks HTTPS with a certificate nobody knows; see
// httptest.Server.Certificate.
func NewTLS(t testing.TB) *Registry { return start(t, (*httptest.Server).StartTLS) }

func start(t testing.TB, run func(*httptest.Server)) *Registry {
	t.Helper()
	logrus.SetOutput(io.Discard)
	c := &configuration.Configuration{Storage: configuration.Storage{
		"inmemory": {}, "delete": {"enabled": true},
		"maintenance": {"uploadpurging": map[any]any{"enabled": false}},
	}}
	c.Validation.Manifests.Indexes.Platforms = "none"
	c.Validation.Disabled = true // bad manifests are wanted
	c.HTTP.Secret = "of no worth"
	app := handlers.NewApp(t.Context(), c)
	r := &Registry{}
	r.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { r.serve(w, req, app) }))
	run(r.Server)
	t.Cleanup(func() { r.CloseClientConnections(); r.Close() })
	return r
}

// Host is what stands before the first slash of a reference.
func (r *Registry) Host() string {
	_, host, _ := strings.Cut(r.URL, "://")
	return host
}

// Break adds a fault; the one added last is tried first.
func (r *Registry) Break(f Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = append(r.faults, &f)
}

// Mend takes all faults away.
func (r *Registry) Mend() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = nil
}

// Requests returns what was asked so far whose method and path match; "" is any.
func (r *Registry) Requests(method, path string) []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	var got []Request
	for _, q := range r.requests {
		if (method == "" || q.Method == method) && strings.Contains(q.Path, path) {
			got = append(got, q)
		}
	}
	return got
}

func (r *Registry) serve(w http.ResponseWriter, req *http.Request, app http.Handler) {
	if f := r.note(req); f != nil {
		f.Handler(w, req, app)
		return
	}
	app.ServeHTTP(w, req)
}

func (r *Registry) note(req *http.Request) *Fault {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = append(r.requests, Request{
		Method: req.Method, Path: req.URL.Path, Query: req.URL.RawQuery, Range: req.Header.Get("Range"),
		Authorization: req.Header.Get("Authorization"), Namespace: req.URL.Query().Get("ns"),
	})
	for _, f := range slices.Backward(r.faults) {

		if f.Match != nil && !f.Match(req) || f.Times > 0 && f.done >= f.Times {
			continue
		}
		f.done++
		return f
	}
	return nil
}

// Blobs matches the download of any blob, or of those given.
func Blobs(which ...digest.Digest) func(*http.Request) bool {
	return func(r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		for _, d := range which {
			if strings.HasSuffix(r.URL.Path, d.String()) {
				return true
			}
		}
		return len(which) == 0
	}
}

// Manifests matches every request for a manifest.
func Manifests(r *http.Request) bool { return strings.Contains(r.URL.Path, "/manifests/") }

// Status answers with code and headers (name, value, …).
func Status(code int, headers ...string) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		for i := 0; i+1 < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(code)
	}
}

// Cut closes the connection after n bytes of the body.
func Cut(n int) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		next.ServeHTTP(&cutter{ResponseWriter: w, left: n, then: func() { panic(http.ErrAbortHandler) }}, r)
		panic(http.ErrAbortHandler)
	}
}

// Stall sends n bytes of the body and then nothing, until the client goes.
func Stall(n int) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if n == 0 {
			<-r.Context().Done()
			return
		}
		next.ServeHTTP(&cutter{ResponseWriter: w, left: n, then: func() {
			<-r.Context().Done()
			panic(http.ErrAbortHandler)
		}}, r)
	}
}

// Flip answers with one bit of the body changed.
func Flip() func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) { next.ServeHTTP(&flipper{w, false}, r) }
}

type flipper struct {
	http.ResponseWriter
	done bool
}

func (f *flipper) Write(p []byte) (int, error) {
	if !f.done && len(p) > 0 {
		p = append([]byte(nil), p...)
		p[len(p)/2] ^= 1
		f.done = true
	}
	return f.ResponseWriter.Write(p)
}

type cutter struct {
	http.ResponseWriter
	left int
	then func()
}

func (c *cutter) Write(p []byte) (int, error) {
	if len(p) < c.left {
		c.left -= len(p)
		return c.ResponseWriter.Write(p)
	}
	c.ResponseWriter.Write(p[:c.left]) //nolint:errcheck // the client may have gone
	http.NewResponseController(c.ResponseWriter).Flush()
	c.then()
	return 0, io.ErrClosedPipe
}
