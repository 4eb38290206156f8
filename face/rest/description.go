package rest

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"html/template"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/danielgtaylor/huma/v2"
)

//go:embed docs.html
var docsPage string

// description serves the API's own description. It is rendered when it is
// first asked for.
func (r *routes) description() {
	openAPI := sync.OnceValues(func() ([]byte, error) { return r.openAPI() })
	page := sync.OnceValues(func() ([]byte, error) { return r.page() })
	r.mux.HandleFunc("GET /openapi.json", r.rendered("application/vnd.oai.openapi+json;version=3.1", openAPI))
	r.mux.HandleFunc("GET /docs", r.rendered("text/html; charset=utf-8", page))
}

func (r *routes) rendered(contentType string, render func() ([]byte, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		data, err := render()
		if err != nil {
			r.server.fail(w, req, err)
			return
		}
		w.Header().Set("Content-Type", contentType)
		_, _ = w.Write(data) // the client may be gone
	}
}

func (r *routes) openAPI() ([]byte, error) {
	doc := r.api.OpenAPI()
	schemas := doc.Components.Schemas.Map()
	delete(schemas, "ErrorModel") // huma's own form of errors, which we never answer with
	delete(schemas, "ErrorDetail")
	for _, op := range operations(doc) {
		delete(op.Responses, "422") // described by default
	}
	return json.MarshalIndent(doc, "", " ")
}

// operations lists the operations by path.
func operations(doc *huma.OpenAPI) []*huma.Operation {
	var all []*huma.Operation
	for _, path := range slices.Sorted(maps.Keys(doc.Paths)) {
		item := doc.Paths[path]
		for _, op := range []*huma.Operation{item.Get, item.Head, item.Post, item.Put, item.Patch, item.Delete} {
			if op != nil {
				all = append(all, op)
			}
		}
	}
	return all
}

// page renders the description for people.
func (r *routes) page() ([]byte, error) {
	doc := r.api.OpenAPI()
	t, err := template.New("docs").Funcs(template.FuncMap{
		"form":    form,
		"content": contents,
		"fields":  fields,
		"in":      func(op *huma.Operation, tag string) bool { return slices.Contains(op.Tags, tag) },
	}).Parse(docsPage)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = t.Execute(&out, map[string]any{
		"Doc": doc, "Operations": operations(doc), "Schemas": doc.Components.Schemas.Map(),
	})
	return out.Bytes(), err
}

// form names a schema in few words: "Container", "list of Image", "string".
func form(s *huma.Schema) string {
	switch {
	case s == nil:
		return ""
	case s.Ref != "":
		return s.Ref[strings.LastIndexByte(s.Ref, '/')+1:]
	case s.Type == "array":
		return "list of " + form(s.Items)
	case s.Type == "object":
		if of, ok := s.AdditionalProperties.(*huma.Schema); ok {
			return "map of " + form(of)
		}
	case s.Format != "" && s.Format != "binary":
		return s.Type + " (" + s.Format + ")"
	}
	return s.Type
}

// contents lists the forms of a body: "application/json: Container".
func contents(c map[string]*huma.MediaType) []string {
	var out []string
	for _, kind := range slices.Sorted(maps.Keys(c)) {
		out = append(out, strings.TrimSuffix(kind+": "+form(c[kind].Schema), ": "))
	}
	return out
}

type field struct {
	Name, Form, Doc string
	Required        bool
}

func fields(s *huma.Schema) []field {
	var out []field
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		p := s.Properties[name]
		out = append(out, field{name, form(p), p.Description, slices.Contains(s.Required, name)})
	}
	return out
}
