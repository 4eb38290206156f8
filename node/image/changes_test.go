package image

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"berth/base/errs"
	"berth/spec"
)

func TestApplyChanges(t *testing.T) {
	base := spec.ImageConfig{
		Env: []string{"A=1", "B=2"}, Entrypoint: []string{"/old"}, Command: []string{"arg"}, WorkDir: "/srv",
		Labels: map[string]string{"k": "v"}, ExposedPorts: []spec.Exposed{"80/tcp"}, Volumes: []string{"/data"},
	}
	for _, c := range []struct {
		lines []string
		want  func(*spec.ImageConfig)
	}{
		{nil, func(*spec.ImageConfig) {}},
		{[]string{`CMD ["/a", "b c"]`}, func(c *spec.ImageConfig) { c.Command = []string{"/a", "b c"} }},
		{[]string{`cmd echo $HOME`}, func(c *spec.ImageConfig) { c.Command = []string{"/bin/sh", "-c", "echo $HOME"} }},
		{[]string{`CMD [not json`}, func(c *spec.ImageConfig) { c.Command = []string{"/bin/sh", "-c", "[not json"} }},
		{[]string{`ENTRYPOINT ["/new"]`}, func(c *spec.ImageConfig) { c.Entrypoint, c.Command = []string{"/new"}, nil }},
		{[]string{`CMD ["x"]`, `ENTRYPOINT ["/new"]`}, func(c *spec.ImageConfig) { c.Entrypoint, c.Command = []string{"/new"}, []string{"x"} }},
		{[]string{`ENV A=9 C="x y" D='p "q"' E=a\ b`}, func(c *spec.ImageConfig) { c.Env = []string{"A=9", "B=2", "C=x y", `D=p "q"`, "E=a b"} }},
		{[]string{`ENV C old form  of it`}, func(c *spec.ImageConfig) { c.Env = []string{"A=1", "B=2", "C=old form  of it"} }},
		{[]string{`LABEL k=w "a b"=c`}, func(c *spec.ImageConfig) { c.Labels = map[string]string{"k": "w", "a b": "c"} }},
		{[]string{`EXPOSE 80 53/udp 90-91`}, func(c *spec.ImageConfig) {
			c.ExposedPorts = []spec.Exposed{"80/tcp", "53/udp", "90/tcp", "91/tcp"}
		}},
		{[]string{`VOLUME ["/a b", "/data"]`, `VOLUME /c /d`}, func(c *spec.ImageConfig) { c.Volumes = []string{"/data", "/a b", "/c", "/d"} }},
		{[]string{`USER me:us`, `STOPSIGNAL SIGQUIT`}, func(c *spec.ImageConfig) { c.User, c.StopSignal = "me:us", "SIGQUIT" }},
		{[]string{`WORKDIR sub/../x`}, func(c *spec.ImageConfig) { c.WorkDir = "/srv/x" }},
		{[]string{`WORKDIR /a/`, `WORKDIR b`}, func(c *spec.ImageConfig) { c.WorkDir = "/a/b" }},
		{[]string{`HEALTHCHECK NONE`}, func(c *spec.ImageConfig) { c.Health = &spec.HealthConfig{Test: []string{"NONE"}} }},
		{[]string{`HEALTHCHECK --interval=5s --retries=3 CMD curl -f x`}, func(c *spec.ImageConfig) {
			c.Health = &spec.HealthConfig{Test: []string{"CMD-SHELL", "curl -f x"}, Interval: 5 * time.Second, Retries: 3}
		}},
		{[]string{`HEALTHCHECK CMD ["/check"]`}, func(c *spec.ImageConfig) { c.Health = &spec.HealthConfig{Test: []string{"CMD", "/check"}} }},
	} {
		want := cloneConfig(base)
		c.want(&want)
		got, err := applyChanges(base, c.lines)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q:\n got %+v, %v\nwant %+v", c.lines, got, err, want)
		}
	}
	for _, line := range []string{
		"", "FROM x", "RUN x", "CMD", "ENV A", `ENV A="x`, "ENV A=1 B", "EXPOSE x", "EXPOSE 0", "EXPOSE 9-8", "EXPOSE 80/icmp", "EXPOSE 70000",
		"HEALTHCHECK x", "HEALTHCHECK CMD", "HEALTHCHECK --interval=x CMD y", "HEALTHCHECK --color=red CMD y",
	} {
		if _, err := applyChanges(base, []string{line}); !errors.Is(err, errs.Invalid) {
			t.Errorf("%q: got error %v, want it invalid", line, err)
		}
	}
	if !reflect.DeepEqual(base.Env, []string{"A=1", "B=2"}) || base.Labels["k"] != "v" {
		t.Errorf("the caller's config was changed: %+v", base)
	}
}

// A configuration that docker wrote keeps what spec does not know.
func TestDocument(t *testing.T) {
	body := `{"architecture":"arm64","os":"linux","variant":"v8","created":"2024-01-02T03:04:05.6Z","author":"me",
		"config":{"User":"1","ExposedPorts":{"80/tcp":{},"53/udp":{}},"Env":["A=b"],"Cmd":["c"],"Volumes":{"/v":{}},"WorkingDir":"/w","StopSignal":"SIGINT",
		"Healthcheck":{"Test":["CMD","x"],"Interval":5000000000,"Retries":2},"OnBuild":["RUN x"],"Shell":["/bin/ash"],"Labels":{"k":"v"}},
		"rootfs":{"type":"layers","diff_ids":["sha256:aa"]},"history":[{"created_by":"x"}]}`
	doc, err := parseDocument("sha256:id", []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	image := doc.image("sha256:id")
	want := spec.ImageConfig{
		User: "1", ExposedPorts: []spec.Exposed{"53/udp", "80/tcp"}, Env: []string{"A=b"}, Command: []string{"c"}, Volumes: []string{"/v"},
		WorkDir: "/w", StopSignal: "SIGINT", Labels: map[string]string{"k": "v"},
		Health: &spec.HealthConfig{Test: []string{"CMD", "x"}, Interval: 5 * time.Second, Retries: 2},
	}
	if !reflect.DeepEqual(image.Config, want) || image.Platform != "linux/arm64" && image.Platform != "linux/arm64/v8" || image.Author != "me" {
		t.Errorf("read %+v\nwant %+v", image, want)
	}
	doc.Config.set(image.Config)
	if again := doc.Config.spec(); !reflect.DeepEqual(again, want) {
		t.Errorf("written and read again: %+v", again)
	}
	if !reflect.DeepEqual(doc.Config.OnBuild, []string{"RUN x"}) || !reflect.DeepEqual(doc.Config.Shell, []string{"/bin/ash"}) {
		t.Errorf("docker's own was lost: %+v", doc.Config)
	}
	if _, err := parseDocument("sha256:id", []byte("[")); !errors.Is(err, errs.Invalid) {
		t.Errorf("broken configuration: %v", err)
	}
}

func FuzzChanges(f *testing.F) {
	for _, line := range []string{`ENV A="b c" D=\ `, `HEALTHCHECK --interval=1s CMD x`, `EXPOSE 1-65535`, `VOLUME ["/a"]`} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		if _, err := applyChanges(spec.ImageConfig{}, []string{line}); err != nil && !errors.Is(err, errs.Invalid) {
			t.Errorf("%q: error of another kind: %v", line, err)
		}
	})
}
