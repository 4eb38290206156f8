package rest_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"berth/client"
)

func fetch(t *testing.T, path string) (string, http.Header) {
	w := httptest.NewRecorder()
	newNode().handler(io.Discard).ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	if w.Code != http.StatusOK {
		t.Fatalf("%s: %d %s", path, w.Code, w.Body)
	}
	return w.Body.String(), w.Header()
}

type document struct {
	OpenAPI    string                                `json:"openapi"`
	Paths      map[string]map[string]json.RawMessage `json:"paths"`
	Components struct {
		Schemas map[string]json.RawMessage `json:"schemas"`
	} `json:"components"`
}

type operation struct {
	ID         string `json:"operationId"`
	Summary    string `json:"summary"`
	Parameters []struct {
		Name, In string
		Required bool
		Schema   json.RawMessage
	} `json:"parameters"`
	Responses map[string]struct{ Description string } `json:"responses"`
}

func TestOpenAPI(t *testing.T) {
	text, _ := fetch(t, "/openapi.json")
	var doc document
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.OpenAPI != "3.1.0" {
		t.Errorf("version %s", doc.OpenAPI)
	}
	var ids []string
	for path, methods := range doc.Paths {
		for method, raw := range methods {
			var op operation
			if err := json.Unmarshal(raw, &op); err != nil {
				t.Fatalf("%s %s: %v", method, path, err)
			}
			ids = append(ids, op.ID)
			checkOperation(t, method+" "+path, path, op)
		}
	}
	checkReferences(t, text, doc)
	lawful := regexp.MustCompile(`^[a-zA-Z0-9._-]+$`) // OpenAPI's own rule for names of components
	for name := range doc.Components.Schemas {
		if !lawful.MatchString(name) {
			t.Errorf("schema %q: that is no name for a component", name)
		}
	}
	for _, gone := range []string{"ErrorModel", "$schema", `"Response"`} {
		if strings.Contains(text, gone) {
			t.Errorf("the description mentions %s", gone)
		}
	}
	checkMethods(t, ids)
}

func checkOperation(t *testing.T, name, path string, op operation) {
	if op.Summary == "" || op.ID == "" {
		t.Errorf("%s: no summary or id", name)
	}
	var in []string
	for _, p := range op.Parameters {
		if len(p.Schema) == 0 {
			t.Errorf("%s: parameter %s has no schema", name, p.Name)
		}
		if p.In == "path" && p.Required {
			in = append(in, p.Name)
		}
	}
	for _, m := range regexp.MustCompile(`\{(\w+)\}`).FindAllStringSubmatch(path, -1) {
		if !slices.Contains(in, m[1]) {
			t.Errorf("%s: path parameter %s is not described", name, m[1])
		}
	}
	good := false
	for status, r := range op.Responses {
		good = good || status < "400" && status != "default"
		if r.Description == "" {
			t.Errorf("%s: response %s is not described", name, status)
		}
	}
	if _, ok := op.Responses["default"]; !ok || !good {
		t.Errorf("%s: responses %v", name, op.Responses)
	}
}

func checkReferences(t *testing.T, text string, doc document) {
	refs := regexp.MustCompile(`"\$ref": "([^"]*)"`).FindAllStringSubmatch(text, -1)
	if len(refs) < 20 {
		t.Errorf("only %d references", len(refs))
	}
	for _, m := range refs {
		name, ok := strings.CutPrefix(m[1], "#/components/schemas/")
		if _, found := doc.Components.Schemas[name]; !ok || !found {
			t.Errorf("%s leads nowhere", m[1])
		}
	}
}

// checkMethods: the API and the client's methods are the same list.
func checkMethods(t *testing.T, ids []string) {
	composed := []string{"Close", "ContainerStatsStream"}
	c := reflect.TypeFor[*client.Client]()
	for m := range c.Methods() {
		if !slices.Contains(ids, m.Name) && !slices.Contains(composed, m.Name) {
			t.Errorf("the client's %s is no operation of the API", m.Name)
		}
	}
	for _, id := range ids {
		if _, ok := c.MethodByName(id); !ok {
			t.Errorf("the client has no method %s", id)
		}
	}
}

func TestDocsNeedNoInternet(t *testing.T) {
	text, head := fetch(t, "/docs")
	if !strings.HasPrefix(head.Get("Content-Type"), "text/html") {
		t.Error(head)
	}
	if regexp.MustCompile(`(?i)(src|href)\s*=\s*"?(https?:)?//|@import|<script`).MatchString(text) {
		t.Error("the page loads something from elsewhere")
	}
	for _, want := range []string{"/v1/containers/{ref}/attach", "ContainerConfig", "curl --unix-socket", "memory, cpu"[:6]} {
		if !strings.Contains(text, want) {
			t.Errorf("the page does not mention %s", want)
		}
	}
	if out := os.Getenv("DOCS_OUT"); out != "" {
		_ = os.WriteFile(out, []byte(text), 0o600)
	}
}
