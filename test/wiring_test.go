package test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"berth/cli"
	"berth/spec"
)

// fakeNode answers on a unix socket as it is told, and remembers what it was
// asked.
type fakeNode struct {
	socket  string
	answers map[string]any // by method and path; a string is sent as it is, an int is a failure's status

	mu    sync.Mutex
	asked []string
	body  string // of the last request that had one
}

func newFakeNode(t *testing.T, answers map[string]any) *fakeNode {
	t.Helper()
	n := &fakeNode{socket: filepath.Join(t.TempDir(), "s"), answers: answers}
	var config net.ListenConfig
	listener, err := config.Listen(t.Context(), "unix", n.socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: n} //nolint:gosec // a test's own
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	t.Cleanup(func() { _ = server.Close(); serving.Wait() })
	return n
}

func (n *fakeNode) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, _ := url.PathUnescape(r.URL.EscapedPath())
	key := r.Method + " " + strings.TrimPrefix(path, "/v1")
	body, _ := io.ReadAll(r.Body)
	n.mu.Lock()
	line := key
	if r.URL.RawQuery != "" {
		query, _ := url.QueryUnescape(r.URL.RawQuery)
		line += "?" + query
	}
	n.asked = append(n.asked, line)
	if len(body) > 0 {
		n.body = string(body)
	}
	n.mu.Unlock()
	answer, known := n.answers[key]
	status, failed := answer.(int)
	if !known {
		status, failed = http.StatusNotFound, true
	}
	switch text, plain := answer.(string); {
	case failed:
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(spec.Problem{Title: titles[status], Status: status, Detail: "no such thing: " + filepath.Base(r.URL.Path)})
	case plain:
		_, _ = io.WriteString(w, text)
	default:
		_ = json.NewEncoder(w).Encode(answer)
	}
}

var titles = map[int]string{404: "not found", 409: "conflict", 500: "internal"}

// run runs a command line against the node.
func (n *fakeNode) run(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, fail bytes.Buffer
	code = cli.Run(context.Background(), append([]string{"--socket", n.socket}, args...), strings.NewReader(stdin), &out, &fail)
	return code, out.String(), fail.String()
}

func done(image spec.Image) string {
	return fmt.Sprintf("%s\n%s\n", asJSON(spec.Progress{Phase: spec.Fetching, Item: "sha256:" + strings.Repeat("f", 64), Total: 1000}),
		asJSON(spec.Progress{Phase: spec.Done, Status: "complete", Image: &image}))
}

func asJSON(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(data)
}

// Each verb asks the node for the right thing, and shows what it answers.
func TestVerbsAskTheNode(t *testing.T) {
	id := strings.Repeat("a", 64)
	web := spec.Container{ID: id, Name: "web", Image: "nginx", Args: []string{"nginx"}, State: spec.ContainerState{Status: spec.Running}}
	alpine := spec.Image{ID: "sha256:" + strings.Repeat("1", 64), Names: []string{"docker.io/library/alpine:3.20"}, Size: 7_000_000}
	lab := spec.Network{ID: strings.Repeat("b", 64), Config: spec.NetworkConfig{Name: "lab", Driver: "bridge"}}
	data := spec.Volume{Name: "data", Driver: "local", Path: "/v/data"}
	pruned := spec.Pruned{Removed: []string{"gone"}, Reclaimed: 2000}
	n := newFakeNode(t, map[string]any{
		"POST /containers": web, "GET /containers": []spec.Container{web}, "GET /containers/web": web,
		"POST /containers/web/start": "", "POST /containers/" + id + "/start": "", "POST /containers/web/stop": "", "POST /containers/web/kill": "", "POST /containers/web/restart": "",
		"POST /containers/web/pause": "", "POST /containers/web/unpause": "", "POST /containers/web/rename": "", "PATCH /containers/web": web, "DELETE /containers/web": "",
		"GET /containers/web/wait": spec.Exit{Code: 3}, "GET /containers/" + id + "/wait": spec.Exit{Code: 3},
		"GET /containers/web/top":     spec.ProcessTable{Titles: []string{"PID", "CMD"}, Processes: [][]string{{"7", "nginx -g"}}},
		"GET /containers/web/ports":   []spec.PortMapping{{HostPort: 8080, ContainerPort: 80}},
		"GET /containers/web/changes": []spec.Change{{Kind: "A", Path: "/x"}},
		"GET /containers/web/sizes":   spec.ContainerSizes{RW: 1, RootFS: 2},
		"GET /containers/web/logs":    "2026-11-21T12:00:00Z stdout F one\n2026-11-21T12:00:01Z stderr F two\n2026-11-21T12:00:02Z stdout P thr\n2026-11-21T12:00:03Z stdout F ee\n",
		"GET /containers/web/export":  "tar", "POST /containers/web/commit": alpine,
		"GET /images": []spec.Image{alpine}, "GET /images/alpine": alpine, "POST /images/pull": done(alpine), "POST /images/push": done(alpine), "POST /images/load": done(alpine),
		"POST /images/save": "tar", "POST /images/alpine/tag": "", "DELETE /images/alpine": []spec.RemovedImage{{Untagged: "docker.io/library/alpine:3.20"}, {Deleted: "sha256:1"}},
		"GET /images/alpine/history": []spec.HistoryEntry{{CreatedBy: "RUN x", Size: 5, DiffID: "sha256:" + strings.Repeat("2", 64)}},
		"GET /networks":              []spec.Network{lab}, "POST /networks": lab, "GET /networks/lab": lab, "DELETE /networks/lab": "",
		"PUT /networks/lab/containers/web": "", "DELETE /networks/lab/containers/web": "",
		"GET /volumes": []spec.Volume{data}, "POST /volumes": data, "GET /volumes/data": data, "DELETE /volumes/data": "",
		"GET /df": spec.DiskUsage{Images: spec.DiskShare{Total: 2, Size: 1000}}, "GET /info": spec.Info{Name: "host"}, "GET /version": spec.Version{Version: "9", GoVersion: "go1", Platform: "linux/x"},
		"POST /prune": spec.SystemPruned{Containers: pruned}, "POST /containers/prune": pruned, "POST /images/prune": pruned, "POST /networks/prune": pruned, "POST /volumes/prune": pruned,
		"POST /system/scrub": asJSON(spec.ScrubProgress{Part: "blob", Checked: 1, Damage: &spec.Damage{Part: "blob", Name: "x", What: "is missing", Repaired: true, Repair: "reg/app"}}) +
			asJSON(spec.ScrubProgress{Checked: 2, Result: &spec.ScrubResult{Checked: 2, Damaged: 1, Repaired: 1}}),
		"GET /events": "id: 1\ndata: " + asJSON(spec.Event{Seq: 1, Type: "container", Action: "die", ID: "abc"}) + "\n\n",
	})
	for _, c := range []struct {
		line   string
		asks   []string
		prints string // a part of stdout
	}{
		{"run -d --name web nginx", []string{"POST /containers", "POST /containers/" + id + "/start"}, id + "\n"},
		{"create nginx", []string{"POST /containers"}, id + "\n"},
		{"start web", []string{"POST /containers/web/start"}, "web\n"},
		{"stop -t 3 -s INT web", []string{"POST /containers/web/stop?signal=INT&timeout=3"}, "web\n"},
		{"stop web", []string{"POST /containers/web/stop"}, "web\n"},
		{"restart -t 0 web", []string{"POST /containers/web/restart?timeout=0"}, "web\n"},
		{"kill -s HUP web", []string{"POST /containers/web/kill?signal=HUP"}, "web\n"},
		{"pause web", []string{"POST /containers/web/pause"}, "web\n"},
		{"unpause web", []string{"POST /containers/web/unpause"}, "web\n"},
		{"rename web www", []string{"POST /containers/web/rename?name=www"}, ""},
		{"update -m 64m web", []string{"PATCH /containers/web"}, "web\n"},
		{"rm -f -v web", []string{"DELETE /containers/web?force=true&volumes=true"}, "web\n"},
		{"rm -f nowhere", []string{"DELETE /containers/nowhere?force=true"}, ""},
		{"wait web", []string{"GET /containers/web", "GET /containers/" + id + "/wait?condition=not-running"}, "3\n"},
		{"ps", []string{"GET /containers"}, "aaaaaaaaaaaa   nginx     \"nginx\""},
		{"ps -aq --no-trunc --filter name=w", []string{"GET /containers?all=true&filter=name=w"}, id + "\n"},
		{"ps --filter status=exited", []string{"GET /containers?all=true&filter=status=exited"}, "NAMES"},
		{"ps --format {{.Names}}", []string{"GET /containers"}, "web\n"},
		{"container ls -l", []string{"GET /containers?all=true"}, "web"},
		{"logs -t --tail 5 web", []string{"GET /containers/web/logs?tail=5"}, "2026-11-21T12:00:02.000000000Z three\n"},
		{"inspect -f {{.Name}} web", []string{"GET /containers/web"}, "web\n"},
		{"inspect --type network lab", []string{"GET /networks/lab"}, `"name": "lab"`},
		{"inspect data", []string{"GET /containers/data", "GET /images/data", "GET /networks/data", "GET /volumes/data"}, `"path": "/v/data"`},
		{"top web -o pid,cmd", []string{"GET /containers/web/top?arg=-o&arg=pid,cmd"}, "PID       CMD\n7         nginx -g\n"},
		{"port web 80", []string{"GET /containers/web/ports"}, "0.0.0.0:8080\n[::]:8080\n"},
		{"diff web", []string{"GET /containers/web/changes"}, "A /x\n"},
		{"export web", []string{"GET /containers/web/export"}, "tar"},
		{"commit -m why web new:1", []string{"POST /containers/web/commit"}, alpine.ID},
		{"events --since 0s --until 1s --filter type=container --format {{.Action}}", nil, "die\n"},
		{"pull -q alpine", []string{"POST /images/pull"}, "docker.io/library/alpine:latest\n"},
		{"pull alpine:3.20", []string{"POST /images/pull"}, "ffffffffffff: fetching (1kB)\ndocker.io/library/alpine:3.20\n"},
		{"push alpine", []string{"POST /images/push"}, "docker.io/library/alpine:latest\n"},
		{"load", []string{"POST /images/load"}, "Loaded image: alpine:3.20\n"},
		{"save alpine", []string{"POST /images/save?format=docker-archive&ref=alpine"}, "tar"},
		{"images", []string{"GET /images"}, "alpine       3.20      111111111111   N/A       7MB"},
		{"images -q", []string{"GET /images"}, "111111111111\n"},
		{"image ls --filter dangling=true", []string{"GET /images?filter=dangling=true"}, "REPOSITORY"},
		{"tag alpine new:1", []string{"POST /images/alpine/tag?name=new:1"}, ""},
		{"rmi -f alpine", []string{"DELETE /images/alpine?force=true"}, "Untagged: alpine:3.20\nDeleted: sha256:1\n"},
		{"history alpine", []string{"GET /images/alpine/history"}, "222222222222   N/A       RUN x        5B"},
		{"network ls", []string{"GET /networks"}, "bbbbbbbbbbbb   lab       bridge"},
		{"network create --subnet 10.9.0.0/24 lab", []string{"POST /networks"}, lab.ID},
		{"network connect --ip 10.9.0.2 lab web", []string{"PUT /networks/lab/containers/web"}, ""},
		{"network disconnect lab web", []string{"DELETE /networks/lab/containers/web"}, ""},
		{"network inspect -f {{.Config.Name}} lab", []string{"GET /networks/lab"}, "lab\n"},
		{"network rm lab", []string{"DELETE /networks/lab"}, "lab\n"},
		{"network prune -f", []string{"POST /networks/prune"}, "gone\nReclaimed space: 2kB\n"},
		{"volume ls -q", []string{"GET /volumes"}, "data\n"},
		{"volume create data", []string{"POST /volumes"}, "data\n"},
		{"volume inspect data", []string{"GET /volumes/data"}, `"driver": "local"`},
		{"volume rm data", []string{"DELETE /volumes/data"}, "data\n"},
		{"volume prune -af --filter label=x", []string{"POST /volumes/prune?all=true&filter=label=x"}, "gone\n"},
		{"container prune -f", []string{"POST /containers/prune"}, "gone\n"},
		{"image prune -a -f", []string{"POST /images/prune?all=true"}, "gone\n"},
		{"system prune -af --volumes", []string{"POST /prune?all=true&volumes=true"}, "Containers:\ngone\n\nReclaimed space: 2kB\n"},
		{"system df", []string{"GET /df"}, "Images        2         0         1kB       0B (0%)"},
		{"system df -v", []string{"GET /df"}, "PART                    COUNT     SIZE\nFiles of layers         0         0B\n"},
		{"system scrub --no-repair", []string{"POST /system/scrub"}, "checking blobs\ndamaged: blob x: is missing; no image has it; repaired: reg/app\nchecked 2 parts, 0B, in 0s: 1 damaged, all repaired\n"},
		{"system scrub --format json", []string{"GET /images", "POST /system/scrub"}, `"repair":"reg/app"`},
		{"info", []string{"GET /info"}, "Name:        host\n"},
		{"version", []string{"GET /version"}, "node  9, go1, linux/x\n"},
		{"__complete stop w", []string{"GET /containers?all=true"}, "web\n"},
		{"__complete run --network l", []string{"GET /networks"}, "lab\n"},
		{"__complete rmi al", []string{"GET /images"}, "alpine:3.20\n"},
		{"__complete volume rm d", []string{"GET /volumes"}, "data\n"},
	} {
		n.asked = nil
		code, stdout, stderr := n.run(t, "", strings.Fields(c.line)...)
		if code != 0 {
			t.Errorf("berth %s: code %d: %s", c.line, code, stderr)
		}
		if c.asks != nil && !slices.Equal(n.asked, c.asks) {
			t.Errorf("berth %s asked %q, want %q", c.line, n.asked, c.asks)
		}
		if !strings.Contains(stdout, c.prints) {
			t.Errorf("berth %s printed %q, want %q", c.line, stdout, c.prints)
		}
	}
}

// What is not there is told with names that are near, and each failure of
// several is told.
func TestFailuresOfTheNode(t *testing.T) {
	n := newFakeNode(t, map[string]any{
		"GET /containers":           []spec.Container{{ID: "1", Name: "web"}, {ID: "2", Name: "worker"}},
		"GET /images":               []spec.Image{{ID: "sha256:1", Names: []string{"docker.io/library/alpine:latest"}}},
		"GET /networks":             []spec.Network{},
		"POST /containers/web/stop": 409, "POST /containers/worker/stop": "",
		"POST /containers": 404,
	})
	for _, c := range []struct {
		line string
		code int
		out  string
		says []string
	}{
		{"stop wbe", 1, "", []string{"berth: stop: no such thing: stop; did you mean web?\n"}},
		{"stop zzzzzz", 1, "", []string{"berth ps -a lists what there is"}},
		{"stop web worker wokrer", 1, "worker\n", []string{"berth: stop: no such thing: stop\n", "did you mean worker?\n"}},
		{"inspect wbe", 1, "[]\n", []string{"no such container, image, network, volume, pod, exec: wbe; did you mean web?"}},
		{"rmi alpin", 1, "", []string{"did you mean alpine or alpine:latest?"}},
		{"network rm lab", 1, "", []string{"berth: network rm: ", "berth network ls lists what there is"}},
		{"run --pull never alpin true", 125, "", []string{"berth: run: ", "did you mean alpine"}},
		{"run busybox", 125, "", []string{"busybox is not here yet: pulling it\n", "berth: run: no such thing: pull\n"}},
	} {
		code, stdout, stderr := n.run(t, "", strings.Fields(c.line)...)
		if code != c.code || stdout != c.out {
			t.Errorf("berth %s: code %d, want %d; stdout %q", c.line, code, c.code, stdout)
		}
		for _, part := range c.says {
			if !strings.Contains(stderr, part) {
				t.Errorf("berth %s said %q, want %q", c.line, stderr, part)
			}
		}
	}
}

// Confirmation is asked for on stdin.
func TestPruneAsks(t *testing.T) {
	n := newFakeNode(t, map[string]any{"POST /volumes/prune": spec.Pruned{}})
	for answer, code := range map[string]int{"y\n": 0, "yes\n": 0, "n\n": 1, "": 1, "maybe\n": 1} {
		n.asked = nil
		got, _, stderr := n.run(t, answer, "volume", "prune")
		if got != code || (len(n.asked) > 0) != (code == 0) || !strings.Contains(stderr, "Go on? [y/N]") {
			t.Errorf("%q: code %d, asked %q, said %q", answer, got, n.asked, stderr)
		}
	}
}

// What the flags ask for is what the node is told.
func TestRequests(t *testing.T) {
	n := newFakeNode(t, map[string]any{
		"POST /containers": spec.Container{ID: "1"}, "PATCH /containers/web": spec.Container{}, "POST /networks": spec.Network{},
		"POST /volumes": spec.Volume{}, "POST /images/pull": done(spec.Image{}), "POST /containers/web/commit": spec.Image{},
		"PUT /networks/lab/containers/web": "",
	})
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	for line, want := range map[string][]string{
		"create -i alpine cat":                 {`"command":["cat"]`, `"openStdin":true`, `"stdinOnce":true`},
		"update --restart always --cpus 2 web": {`"nanoCPUs":2000000000`, `"restart":{"name":"always"}`},
		"network create --subnet 10.9.0.0/24 --gateway 10.9.0.1 --ipv6 --label a=b -o com.docker.network.driver.mtu=1400 lab": {
			`"subnets":[{"subnet":"10.9.0.0/24","gateway":"10.9.0.1"}]`, `"ipv6":true`, `"mtu":1400`, `"labels":{"a":"b"}`,
		},
		"volume create --label a=b --opt type=tmpfs data":  {`"name":"data"`, `"labels":{"a":"b"}`, `"options":{"type":"tmpfs"}`},
		"pull --platform linux/arm64 --insecure alpine":    {`{"reference":"alpine","platform":"linux/arm64","insecure":true}`},
		"commit -a ann -m why -c CMD=x -p=false web new:1": {`{"reference":"new:1","author":"ann","message":"why","changes":["CMD=x"],"noPause":true}`},
		"network connect --alias db --ip 10.9.0.7 lab web": {`{"network":"lab","aliases":["db"],"ipv4":"10.9.0.7"}`},
	} {
		code, _, stderr := n.run(t, "", strings.Fields(line)...)
		if code != 0 {
			t.Errorf("berth %s: code %d: %s", line, code, stderr)
		}
		for _, part := range want {
			if !strings.Contains(n.body, part) {
				t.Errorf("berth %s told %s, want %s", line, n.body, part)
			}
		}
	}
}
