// Package rest answers the REST API of a node: JSON of the types of spec under
// /v1, errors as problem+json, and the API's own description at /openapi.json
// and, for people, at /docs.
//
// A handler decodes, checks, makes one call into a room, and encodes. What
// takes long is streamed: progress as NDJSON, logs as CRI log lines, events as
// server-sent events, archives as tar, and the streams of processes over
// WebSockets, each message one channel byte (spec.Channel) and its data. No
// stream buffers more than some hundred kilobytes: a slow reader slows down
// whoever writes to it, and nobody else.
package rest

import (
	"log/slog"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"go.opentelemetry.io/otel/trace"

	"berth/spec"
)

// Server is the rooms that the API opens. All must be set, but for Metrics and
// Tracer.
type Server struct {
	Containers Containers
	Images     Images
	Networks   Networks
	Volumes    Volumes
	Events     Events
	System     System
	Builder    Builder
	Pods       Pods
	PodMeter   PodMeter
	Seccomp    Profiles

	Metrics http.Handler // answers /metrics
	Tracer  trace.Tracer // makes a span of each request
	Log     *slog.Logger
}

// Handler returns the API. Its requests should descend from the context of the
// daemon (http.Server.BaseContext), so that streams break off when it stops,
// in the way that clients take for a restart.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	r := &routes{server: s, mux: mux, api: humago.New(mux, config(s.System.Version()))}
	r.containers()
	r.execs()
	r.streams()
	r.files()
	r.images()
	r.networks()
	r.volumes()
	r.system()
	r.builder()
	r.pods()
	r.seccomp()
	r.description()
	if s.Metrics != nil {
		mux.Handle("GET /metrics", s.Metrics)
	}
	mux.Handle("/", http.HandlerFunc(r.unknown))
	return s.traced(s.recovered(mux))
}

// config is huma's, without what it would do by itself: schema links in every
// answer, documentation that loads scripts from elsewhere.
func config(v spec.Version) huma.Config {
	c := huma.DefaultConfig("Berth", v.Version)
	c.Info.Description = "The API of a Berth node. Errors are problem+json (RFC 9457); their title is the kind of error. " +
		"References in paths are names, ids, or unambiguous beginnings of ids; a slash in them is written %2F."
	c.CreateHooks = nil
	c.OpenAPIPath, c.DocsPath, c.SchemasPath = "", "", ""
	c.RejectUnknownQueryParameters = true
	c.Formats = map[string]huma.Format{"application/json": jsonFormat(), "json": jsonFormat()}
	c.Transformers = []huma.Transformer{asProblem}
	c.Tags = tags()
	return c
}

func tags() []*huma.Tag {
	return []*huma.Tag{
		{Name: "containers", Description: "What runs, and what could"},
		{Name: "execs", Description: "Further processes in running containers"},
		{Name: "pods", Description: "Containers that share a network and a fate, as Kubernetes has them"},
		{Name: "images", Description: "What containers are made from"},
		{Name: "networks", Description: "What containers talk over"},
		{Name: "volumes", Description: "What outlives containers"},
		{Name: "builder", Description: "What builds images"},
		{Name: "system", Description: "The node itself"},
	}
}
