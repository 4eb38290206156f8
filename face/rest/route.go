package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"berth/base/errs"
	"berth/spec"
)

const prefix = "/v1"

// routes is the API while it is put together.
type routes struct {
	server *Server
	mux    *http.ServeMux
	api    huma.API
}

// operation describes one route. route is "METHOD /path" below prefix; id is
// the name of the client's method.
func (r *routes) operation(route, id, summary string) huma.Operation {
	method, path, _ := strings.Cut(route, " ")
	tag := strings.Split(path, "/")[1]
	if !slices.ContainsFunc(tags(), func(t *huma.Tag) bool { return t.Name == tag }) {
		tag = "system"
	}
	return huma.Operation{
		Method: method, Path: prefix + path, OperationID: id, Summary: summary, Tags: []string{tag},
		MaxBodyBytes: 4 << 20, // a seccomp profile may come along
		Responses:    map[string]*huma.Response{"default": r.problemResponse()},
	}
}

func (r *routes) problemResponse() *huma.Response {
	return &huma.Response{
		Description: "What went wrong, and what to do about it",
		Content:     map[string]*huma.MediaType{"application/problem+json": {Schema: schemaOf[spec.Problem](r.api)}},
	}
}

type body[T any] struct{ Body T }

// answer adds a route that answers with one JSON value.
func answer[I, O any](r *routes, route, id, summary string, fn func(context.Context, *I) (O, error)) {
	answerWith(r, http.StatusOK, route, id, summary, fn)
}

// create adds a route that answers with what it has made.
func create[I, O any](r *routes, route, id, summary string, fn func(context.Context, *I) (O, error)) {
	answerWith(r, http.StatusCreated, route, id, summary, fn)
}

func answerWith[I, O any](r *routes, status int, route, id, summary string, fn func(context.Context, *I) (O, error)) {
	op := r.operation(route, id, summary)
	op.DefaultStatus = status
	huma.Register(r.api, op, func(ctx context.Context, in *I) (*body[O], error) {
		out, err := fn(ctx, in)
		if err != nil {
			return nil, r.server.problem(ctx, err)
		}
		return &body[O]{out}, nil
	})
}

// act adds a route that answers with nothing but success.
func act[I any](r *routes, route, id, summary string, fn func(context.Context, *I) error) {
	huma.Register(r.api, r.operation(route, id, summary), func(ctx context.Context, in *I) (*struct{}, error) {
		if err := fn(ctx, in); err != nil {
			return nil, r.server.problem(ctx, err)
		}
		return nil, nil //nolint:nilnil // huma's way of saying 204
	})
}

// stream adds a route whose handler has the connection to itself.
func stream[I any](r *routes, op huma.Operation, fn func(http.ResponseWriter, *http.Request, *I)) {
	huma.Register(r.api, op, func(_ context.Context, in *I) (*huma.StreamResponse, error) {
		return &huma.StreamResponse{Body: func(ctx huma.Context) {
			req, w := humago.Unwrap(ctx)
			fn(w, req, in)
		}}, nil
	})
}

// gives documents what a streaming route answers with.
func gives(op huma.Operation, contentType, description string, schema *huma.Schema) huma.Operation {
	op.Responses["200"] = &huma.Response{
		Description: description,
		Content:     map[string]*huma.MediaType{contentType: {Schema: schema}},
	}
	return op
}

// takes documents what is uploaded.
func takes(op huma.Operation, contentType, description string) huma.Operation {
	op.RequestBody = &huma.RequestBody{
		Description: description, Required: true,
		Content: map[string]*huma.MediaType{contentType: {Schema: &huma.Schema{Type: "string", Format: "binary"}}},
	}
	return op
}

func schemaOf[T any](api huma.API) *huma.Schema {
	return huma.SchemaFromType(api.OpenAPI().Components.Schemas, reflect.TypeFor[T]())
}

// some makes an empty list of none, which JSON would call null.
func some[T any](list []T, err error) ([]T, error) {
	if list == nil {
		list = []T{}
	}
	return list, err
}

// Named finds, embedded in an input, one thing.
type Named struct {
	Ref string `path:"ref" minLength:"1" maxLength:"1024" doc:"name, id, or the beginning of an id that only one has"`
}

// Chosen chooses, embedded in an input, from a list.
type Chosen struct {
	Filter []string `query:"filter,explode" doc:"key=value; of several with one key any may fit"`
}

func (c Chosen) filter() (spec.Filter, error) {
	if len(c.Filter) == 0 {
		return nil, nil
	}
	f := spec.Filter{}
	for _, pair := range c.Filter {
		key, value, found := strings.Cut(pair, "=")
		if !found || key == "" {
			return nil, errs.New(errs.Invalid, "filter %q: write key=value, such as label=tier=web", pair)
		}
		f[key] = append(f[key], value)
	}
	return f, nil
}

// optional is a query parameter that may be absent.
type optional[T any] struct {
	value T
	set   bool
}

// Schema is that of the value.
func (o optional[T]) Schema(r huma.Registry) *huma.Schema {
	return huma.SchemaFromType(r, reflect.TypeFor[T]())
}

// Receiver is where huma puts the value.
func (o *optional[T]) Receiver() reflect.Value { return reflect.ValueOf(&o.value).Elem() }

// OnParamSet is told whether there was one.
func (o *optional[T]) OnParamSet(set bool, _ any) { o.set = set }

func (o *optional[T]) pointer() *T {
	if !o.set {
		return nil
	}
	return &o.value
}

// jsonFormat encodes into memory first, so that an answer is one write, and
// its length is known.
func jsonFormat() huma.Format {
	buffers := sync.Pool{New: func() any { return new(bytes.Buffer) }}
	return huma.Format{
		Marshal: func(w io.Writer, v any) error {
			buf := buffers.Get().(*bytes.Buffer)
			buf.Reset()
			enc := json.NewEncoder(buf)
			enc.SetEscapeHTML(false)
			if err := enc.Encode(v); err != nil {
				return err
			}
			_, _ = w.Write(buf.Bytes()) // a client that is gone needs no answer
			if buf.Cap() <= 4<<20 {
				buffers.Put(buf)
			}
			return nil
		},
		Unmarshal: json.Unmarshal,
	}
}

// unknown answers what no route is for.
func (r *routes) unknown(w http.ResponseWriter, req *http.Request) {
	var allowed []string
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		probe := req.Clone(req.Context())
		probe.Method = method
		if _, pattern := r.mux.Handler(probe); pattern != "/" {
			allowed = append(allowed, method)
		}
	}
	p := &problem{spec.Problem{
		Title: string(errs.NotFound), Status: http.StatusNotFound,
		Detail: "there is nothing at " + req.URL.Path + "; /docs lists what is there",
	}}
	if len(allowed) > 0 {
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		p.Title, p.Status = string(errs.Unsupported), http.StatusMethodNotAllowed
		p.Detail = req.URL.Path + " answers " + strings.Join(allowed, ", ") + ", not " + req.Method
	}
	write(w, p)
}

func empty(description string) *huma.Response { return &huma.Response{Description: description} }
