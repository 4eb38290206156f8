package rest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"berth/base/errs"
	"berth/client"
	"berth/node/container"
	"berth/spec"
)

var bg = context.Background()

// calls is every method of the client that makes one request, and what the
// room behind it must hear.
var calls = []struct {
	name string
	do   func(c *client.Client) error
	want string
}{
	{"ContainerCreate", func(c *client.Client) error {
		_, err := c.ContainerCreate(bg, spec.ContainerConfig{Image: "alpine", Rlimits: []spec.Rlimit{{Name: "core", Soft: 1, Hard: 18446744073709551615}}})
		return err
	}, "create alpine [{core 1 18446744073709551615}]"},
	{"ContainerList", func(c *client.Client) error {
		l, err := c.ContainerList(bg, true, spec.Filter{"label": {"a=b", "c"}})
		if err == nil && l == nil {
			return errors.New("an empty list came as null")
		}
		return err
	}, "list true map[label:[a=b c]]"},
	{"ContainerGet", func(c *client.Client) error { _, err := c.ContainerGet(bg, "web"); return err }, "get web"},
	{"ContainerSizes", func(c *client.Client) error { _, err := c.ContainerSizes(bg, "web"); return err }, "sizes web"},
	{"ContainerPorts", func(c *client.Client) error { _, err := c.ContainerPorts(bg, "web"); return err }, "get web"},
	{"ContainerStart", func(c *client.Client) error { return c.ContainerStart(bg, "a/b c") }, "start a/b c"},
	{"ContainerStop", func(c *client.Client) error { return c.ContainerStop(bg, "web", new(0), "") }, "stop web 0 "},
	{"ContainerStop", func(c *client.Client) error { return c.ContainerStop(bg, "web", nil, "TERM") }, "stop web - TERM"},
	{"ContainerRestart", func(c *client.Client) error { return c.ContainerRestart(bg, "web", new(-1), "") }, "restart web -1 "},
	{"ContainerKill", func(c *client.Client) error { return c.ContainerKill(bg, "web", "HUP") }, "kill web HUP"},
	{"ContainerPause", func(c *client.Client) error { return c.ContainerPause(bg, "web") }, "pause web"},
	{"ContainerUnpause", func(c *client.Client) error { return c.ContainerUnpause(bg, "web") }, "unpause web"},
	{"ContainerRename", func(c *client.Client) error { return c.ContainerRename(bg, "web", "db") }, "rename web db"},
	{"ContainerUpdate", func(c *client.Client) error {
		_, err := c.ContainerUpdate(bg, "web", spec.ContainerUpdate{Restart: &spec.RestartPolicy{Name: "always"}})
		return err
	}, "update web &{always 0}"},
	{"ContainerRemove", func(c *client.Client) error { return c.ContainerRemove(bg, "web", true, false) }, "remove web true false"},
	{"ContainerPrune", func(c *client.Client) error { _, err := c.ContainerPrune(bg, nil); return err }, "prune containers map[]"},
	{"ContainerTop", func(c *client.Client) error { _, err := c.ContainerTop(bg, "web", []string{"-o", "pid"}); return err }, "top web [-o pid]"},
	{"ContainerStats", func(c *client.Client) error { _, err := c.ContainerStats(bg, []string{"a", "b"}); return err }, "stats [a b]"},
	{"ContainerResize", func(c *client.Client) error { return c.ContainerResize(bg, "web", spec.Size{Rows: 2, Cols: 3}) }, "resize web {2 3}"},
	{"ContainerChanges", func(c *client.Client) error { _, err := c.ContainerChanges(bg, "web"); return err }, "changes web"},
	{"ContainerCommit", func(c *client.Client) error {
		_, err := c.ContainerCommit(bg, "web", spec.CommitRequest{Reference: "x"})
		return err
	}, "commit web x"},
	{"ContainerExport", func(c *client.Client) error { return c.ContainerExport(bg, "web", io.Discard) }, "export web"},
	{"ContainerStatPath", func(c *client.Client) error {
		s, err := c.ContainerStatPath(bg, "web", "/etc/a")
		if err == nil && s.Name != "a" {
			return errors.New("stat of " + s.Name)
		}
		return err
	}, "stat web /etc/a"},
	{"ContainerCopyFrom", func(c *client.Client) error {
		s, err := c.ContainerCopyFrom(bg, "web", "/etc/a", io.Discard)
		if err == nil && s.Name != "a" {
			return errors.New("stat of " + s.Name)
		}
		return err
	}, "copy from web /etc/a"},
	{"ContainerCopyTo", func(c *client.Client) error {
		return c.ContainerCopyTo(bg, "web", "/", strings.NewReader("tar"), true)
	}, "copy to web / true"},
	{"ExecCreate", func(c *client.Client) error {
		_, err := c.ExecCreate(bg, "web", spec.ExecConfig{Command: []string{"ls"}})
		return err
	}, "exec web [ls]"},
	{"ExecGet", func(c *client.Client) error { _, err := c.ExecGet(bg, "e1"); return err }, "get exec e1"},
	{"ExecResize", func(c *client.Client) error { return c.ExecResize(bg, "e1", spec.Size{Rows: 1, Cols: 1}) }, "resize exec e1 {1 1}"},
	{"ExecDetached", func(c *client.Client) error { return c.ExecDetached(bg, "detached") }, "start exec detached"},
	{"ImageList", func(c *client.Client) error { _, err := c.ImageList(bg, nil); return err }, "images map[]"},
	{"ImageGet", func(c *client.Client) error {
		_, err := c.ImageGet(bg, "localhost:5000/a/b:1@sha256:0")
		return err
	}, "image localhost:5000/a/b:1@sha256:0"},
	{"ImagePush", func(c *client.Client) error { return c.ImagePush(bg, spec.PushRequest{Reference: "x"}, nil) }, "push x"},
	{"ImagePull", func(c *client.Client) error {
		var seen int
		i, err := c.ImagePull(bg, spec.PullRequest{Reference: "x"}, func(spec.Progress) { seen++ })
		if err == nil && (i.ID != "sha256:p" || seen != 3) {
			return errors.New("pulled " + i.ID + " in " + strconv.Itoa(seen))
		}
		return err
	}, "pull x"},
	{"ImageLoad", func(c *client.Client) error {
		l, err := c.ImageLoad(bg, strings.NewReader("tar"), nil)
		if err == nil && len(l) != 2 {
			return errors.New("not two images")
		}
		return err
	}, "load"},
	{"ImageSave", func(c *client.Client) error { return c.ImageSave(bg, []string{"a", "b/c"}, "oci-archive", io.Discard) }, "save [a b/c] oci-archive"},
	{"ImageTag", func(c *client.Client) error { return c.ImageTag(bg, "a/b", "c/d:1") }, "tag a/b c/d:1"},
	{"ImageRemove", func(c *client.Client) error { _, err := c.ImageRemove(bg, "a/b", true); return err }, "rmi a/b true"},
	{"ImageHistory", func(c *client.Client) error { _, err := c.ImageHistory(bg, "a"); return err }, "history a"},
	{"ImagePrune", func(c *client.Client) error { _, err := c.ImagePrune(bg, true, nil); return err }, "prune images true map[]"},
	{"NetworkCreate", func(c *client.Client) error {
		_, err := c.NetworkCreate(bg, spec.NetworkConfig{Name: "n"})
		return err
	}, "network n"},
	{"NetworkList", func(c *client.Client) error { _, err := c.NetworkList(bg, nil); return err }, "networks map[]"},
	{"NetworkGet", func(c *client.Client) error { _, err := c.NetworkGet(bg, "n"); return err }, "get network n"},
	{"NetworkRemove", func(c *client.Client) error { return c.NetworkRemove(bg, "n") }, "remove network n"},
	{"NetworkPrune", func(c *client.Client) error { _, err := c.NetworkPrune(bg, nil); return err }, "prune networks map[]"},
	{"NetworkConnect", func(c *client.Client) error {
		return c.NetworkConnect(bg, "n", "web", spec.EndpointConfig{IPv4: "10.0.0.2"})
	}, "connect web n 10.0.0.2"},
	{"NetworkDisconnect", func(c *client.Client) error { return c.NetworkDisconnect(bg, "n", "web") }, "disconnect web n"},
	{"VolumeCreate", func(c *client.Client) error { _, err := c.VolumeCreate(bg, spec.VolumeConfig{Name: "v"}); return err }, "volume v"},
	{"VolumeList", func(c *client.Client) error { _, err := c.VolumeList(bg, nil); return err }, "volumes map[]"},
	{"VolumeGet", func(c *client.Client) error { _, err := c.VolumeGet(bg, "v"); return err }, "get volume v"},
	{"VolumeRemove", func(c *client.Client) error { return c.VolumeRemove(bg, "v", true) }, "remove volume v true"},
	{"VolumePrune", func(c *client.Client) error { _, err := c.VolumePrune(bg, false, nil); return err }, "prune volumes false map[]"},
	{"BuilderGet", func(c *client.Client) error { _, err := c.BuilderGet(bg); return err }, "builder"},
	{"BuilderStart", func(c *client.Client) error {
		b, err := c.BuilderStart(bg)
		if err == nil && !b.Running {
			return errors.New("it does not run")
		}
		return err
	}, "start builder"},
	{"BuilderStop", func(c *client.Client) error { return c.BuilderStop(bg, true) }, "stop builder true"},
	{"BuildCache", func(c *client.Client) error {
		_, err := c.BuildCache(bg, []string{"type==regular", "a,b"})
		return err
	}, "cache [type==regular a,b]"},
	{"BuildCachePrune", func(c *client.Client) error {
		_, err := c.BuildCachePrune(bg, spec.BuildCachePrune{All: true, Keep: 7})
		return err
	}, "prune cache {All:true Unused:0 Keep:7 Filter:[]}"},
	{"PodStop", func(c *client.Client) error { return c.PodStop(bg, "shop/web") }, "stop pod aa2"},
	{"PodRemove", func(c *client.Client) error { return c.PodRemove(bg, "aa2", true) }, "remove pod aa2"},
	{"PodStats", func(c *client.Client) error {
		all, err := c.PodStats(bg, []string{"test/web", "aa2"})
		if err == nil && all[0].Memory != 7 {
			return errors.New("not its memory")
		}
		return err
	}, "usage [bb1 aa2]"},
	{"Info", func(c *client.Client) error { _, err := c.Info(bg); return err }, "info"},
	{"DiskUsage", func(c *client.Client) error { _, err := c.DiskUsage(bg); return err }, "df"},
	{"SystemScrub", func(c *client.Client) error {
		var told []string
		result, err := c.SystemScrub(bg, spec.ScrubRequest{NoRepair: true}, func(p spec.ScrubProgress) {
			if p.Damage != nil {
				told = append(told, p.Damage.Name)
			}
		})
		if err == nil && (result.Damaged != 1 || len(told) != 1) {
			return fmt.Errorf("got %+v, told %v", result, told)
		}
		return err
	}, "scrub true"},
	{"SystemPrune", func(c *client.Client) error {
		p, err := c.SystemPrune(bg, client.PruneOptions{All: true, Volumes: true})
		if err == nil && (p.Images.Reclaimed != 9 || p.BuildCache.Reclaimed != 1) {
			return errors.New("reclaimed nothing")
		}
		return err
	}, "prune images true map[]"},
}

func TestEveryCall(t *testing.T) {
	n := newNode()
	c := start(t, n).client()
	for _, tt := range calls {
		if err := tt.do(c); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		} else if got := n.last(); got != tt.want {
			t.Errorf("%s: the room heard %q, want %q", tt.name, got, tt.want)
		}
	}
	if err := c.Ping(bg); err != nil {
		t.Error(err)
	}
	if v, err := c.Version(bg); err != nil || v.API != "v1" {
		t.Errorf("version %v, %v", v, err)
	}
}

// kinds reads the closed list of base/errs from its source.
func kinds(t *testing.T) []errs.Kind {
	f, err := parser.ParseFile(token.NewFileSet(), "../../base/errs/errs.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var all []errs.Kind
	ast.Inspect(f, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok {
			if typ, ok := v.Type.(*ast.Ident); ok && typ.Name == "Kind" && len(v.Values) == 1 {
				text, _ := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
				all = append(all, errs.Kind(text))
			}
		}
		return true
	})
	if len(all) < 12 {
		t.Fatalf("found only the kinds %v", all)
	}
	return all
}

// TestEveryKindFromEveryCall: each error of a room arrives with its kind and
// its text, but for what is internal.
func TestEveryKindFromEveryCall(t *testing.T) {
	n := newNode()
	d := start(t, n)
	c := d.client()
	all := kinds(t)
	for _, tt := range calls {
		for _, kind := range all {
			n.fail = errs.New(kind, "the secret of %s", kind)
			err := tt.do(c)
			if got := errs.KindOf(err); got != kind {
				t.Errorf("%s: kind %q became %q: %v", tt.name, kind, got, err)
			} else if said := strings.Contains(err.Error(), "secret"); said == (kind == errs.Internal) {
				t.Errorf("%s: %s says %v", tt.name, kind, err)
			}
		}
	}
	if !strings.Contains(d.log.String(), "the secret of internal") {
		t.Error("the log does not tell of internal errors")
	}
}

func TestEveryKindHasAStatus(t *testing.T) {
	n := newNode()
	h := n.handler(io.Discard)
	for _, kind := range kinds(t) {
		n.fail = errs.New(kind, "x")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/v1/info", nil))
		if w.Code < 400 || w.Code > 599 || w.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: status %d, %v", kind, w.Code, w.Header())
		}
		if (w.Code == 500) != (kind == errs.Internal) {
			t.Errorf("%s has no status of its own: %d", kind, w.Code)
		}
	}
}

func TestStartErrorsCarryTheExitCode(t *testing.T) {
	n := newNode()
	c := start(t, n).client()
	n.fail = &container.StartError{Code: 127, Err: errors.New("no such command: frob")}
	err := c.ContainerStart(bg, "web")
	if s, ok := errors.AsType[*client.StartError](err); !ok || s.Code != 127 || !strings.Contains(err.Error(), "frob") || !errors.Is(err, errs.Invalid) {
		t.Errorf("%#v", err)
	}
	n.fail = nil
	_, err = c.ExecStart(bg, "missing-command", client.AttachOptions{})
	if s, ok := errors.AsType[*client.StartError](err); !ok || s.Code != 127 || !strings.Contains(err.Error(), "frob") {
		t.Errorf("%#v", err)
	}
}

func TestBadRequests(t *testing.T) {
	h := newNode().handler(io.Discard)
	for _, tt := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"GET", "/v1/nothing", "", 404, "/docs"},
		{"PUT", "/v1/containers", "", 405, "GET, HEAD, POST"},
		{"POST", "/v1/containers", "", 400, "body is required"},
		{"POST", "/v1/containers", "{", 400, "unexpected end of JSON"},
		{"POST", "/v1/containers", "\x00\xff", 400, "invalid character"},
		{"POST", "/v1/containers", "[]", 422, "expected object"},
		{"POST", "/v1/containers", `{"image":"a","colour":"red"}`, 422, "colour: unexpected property"},
		{"POST", "/v1/containers", `{"image":7}`, 422, "image: expected string"},
		{"POST", "/v1/containers", `{"image":"a","env":"X=1"}`, 422, "env: expected array"},
		{"POST", "/v1/containers", `{"image":"a","resources":{"memory":1.5}}`, 422, "memory: expected"},
		{"POST", "/v1/containers", `{"image":"a","restart":{"name":"sometimes"}}`, 422, "restart.name: expected value to be one of"},
		{"POST", "/v1/containers", `{}`, 422, "image"},
		{"POST", "/v1/containers", `{"image":"` + strings.Repeat("a", 5<<20) + `"}`, 413, "too large"},
		{"POST", "/v1/containers/a/stop?timeout=soon", "", 422, "timeout"},
		{"POST", "/v1/containers/a/stop?tmeout=1", "", 422, "tmeout: unknown query parameter"},
		{"POST", "/v1/containers/a/rename", "", 422, "name"},
		{"GET", "/v1/containers?filter=red", "", 400, "key=value"},
		{"GET", "/v1/containers?all=perhaps", "", 422, "all"},
		{"GET", "/v1/containers/a/wait?condition=tired", "", 422, "condition"},
		{"GET", "/v1/containers/a/logs?since=yesterday", "", 422, "since"},
		{"GET", "/v1/containers/a/logs?since=2024-01-02T00:00:00Z&until=2023-01-02T00:00:00Z", "", 400, "before"},
		{"GET", "/v1/containers/a/attach?skip=-1", "", 422, "skip"},
		{"GET", "/v1/containers/" + strings.Repeat("a", 2000), "", 422, "ref"},
		{"POST", "/v1/images/save", "", 422, "ref"},
		{"POST", "/v1/execs/e1/start", "", 409, "WebSocket"},
	} {
		req := httptest.NewRequest(tt.method, tt.path, strings.NewReader(tt.body))
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		var p spec.Problem
		if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
			t.Errorf("%s %.60s: %v in %.200s", tt.method, tt.path, err, w.Body)
			continue
		}
		if w.Code != tt.status || p.Status != tt.status || !strings.Contains(p.Detail, tt.says) || p.Title == "" {
			t.Errorf("%s %.60s %.60s: %d %+v; want %d and %q", tt.method, tt.path, tt.body, w.Code, p, tt.status, tt.says)
		}
		if len(p.Detail) > 2000 {
			t.Errorf("%s %.60s: a detail of %d bytes", tt.method, tt.path, len(p.Detail))
		}
	}
}

func TestOtherContentTypesAreRefused(t *testing.T) {
	req := httptest.NewRequest(http.MethodPost, "/v1/containers", strings.NewReader("image=a"))
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	w := httptest.NewRecorder()
	newNode().handler(io.Discard).ServeHTTP(w, req)
	if w.Code != http.StatusUnsupportedMediaType || !strings.Contains(w.Body.String(), "content type") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestMetricsAndPanics(t *testing.T) {
	n := newNode()
	var log bytes.Buffer
	h := n.handler(&log)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != 200 || w.Body.String() != "berth_up 1\n" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	n.export = func(io.Writer) error { panic("secret trouble") }
	w = httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/v1/containers/a/export", nil))
	if w.Code != 500 || strings.Contains(w.Body.String(), "secret") || !strings.Contains(log.String(), "secret trouble") {
		t.Errorf("%d %s; log: %s", w.Code, w.Body, log.String())
	}
}
