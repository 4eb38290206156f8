package pod_test

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"berth/base/errs"
	"berth/node/pod"
	"berth/spec"
)

// entries reads an archive.
func entries(t *testing.T, path string) map[string]string {
	t.Helper()
	f, err := os.Open(path)
	check(t, err)
	defer f.Close()
	all := map[string]string{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		check(t, err)
		body, err := io.ReadAll(r)
		check(t, err)
		all[h.Name] = string(body)
	}
}

func TestCheckpoint(t *testing.T) {
	w := newWorld(t)
	s := w.node()
	c := containerConfig("app")
	id := create(t, s, run(t, s, podConfig("web")), c)
	dir := t.TempDir()
	path := filepath.Join(dir, "app.tar")
	wantKind(t, s.Checkpoint(t.Context(), "nobody", path), errs.NotFound)
	wantKind(t, s.Checkpoint(t.Context(), id, path), errs.Conflict) // it does not run yet
	check(t, s.StartContainer(t.Context(), id), s.Checkpoint(t.Context(), id, path))
	if is := state(t, s, id); is.State != spec.Running {
		t.Errorf("it is %s", is.State)
	}
	info, err := os.Stat(path)
	check(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("others may read it: %v", info.Mode())
	}
	all := entries(t, path)
	if all["checkpoint/pages.img"] == "" || !strings.HasPrefix(all["rootfs-diff.tar"], "changed\x00") || !strings.Contains(all["spec.dump"], `"ociVersion"`) {
		t.Errorf("archive %.2000q", all)
	}
	var config map[string]any
	check(t, json.Unmarshal([]byte(all["config.dump"]), &config))
	if config["id"] != id || config["name"] != "app" || config["rootfsImageRef"] == "" {
		t.Errorf("config.dump %v", config)
	}

	// Whatever fails, there is no half of an archive, and it can be done again.
	for _, step := range []string{"pause", "checkpoint", "diff"} {
		w.setCue(func(_ int, name string, after bool) error {
			if name == step && !after {
				return errs.New(errs.Unsupported, "criu does not work here")
			}
			return nil
		})
		wantKind(t, s.Checkpoint(t.Context(), id, filepath.Join(dir, "second.tar")), errs.Unsupported)
		w.setCue(nil)
		if is := state(t, s, id); is.State != spec.Running {
			t.Errorf("after %s has failed it is %s", step, is.State)
		}
	}

	// Whoever gives up gets nothing, and gets it when the container runs on.
	ctx, giveUp := context.WithCancel(t.Context())
	w.setCue(func(_ int, name string, _ bool) error {
		if name == "checkpoint" {
			giveUp()
		}
		return nil
	})
	wantKind(t, s.Checkpoint(ctx, id, filepath.Join(dir, "third.tar")), errs.Canceled)
	w.setCue(nil)
	if is := state(t, s, id); is.State != spec.Running {
		t.Errorf("given up, it is %s", is.State)
	}
	left, err := os.ReadDir(dir)
	check(t, err)
	if len(left) != 1 || left[0].Name() != "app.tar" {
		t.Errorf("left: %v", left)
	}
	check(t, s.Checkpoint(t.Context(), id, path)) // over the old one
}

// podOfTwo is a pod of two containers that run, and the folder of a checkpoint
// of it.
func podOfTwo(t *testing.T, s *pod.Set) (id, dir string, configs []spec.PodContainerConfig) {
	t.Helper()
	id = run(t, s, podConfig("web"))
	configs = []spec.PodContainerConfig{containerConfig("one"), withVolume("two")}
	var ids []string
	for _, c := range configs {
		ids = append(ids, create(t, s, id, c))
	}
	for _, c := range ids {
		check(t, s.StartContainer(t.Context(), c))
	}
	dir = t.TempDir()
	check(t, s.CheckpointPod(t.Context(), id, dir, ids))
	return id, dir, configs
}

func TestCheckpointPod(t *testing.T) {
	w := newWorld(t)
	s := w.node()
	id, dir, _ := podOfTwo(t, s)
	var ids []string
	for _, c := range s.ContainersOf(id) {
		ids = append(ids, c.ID)
		if c.State != spec.Running {
			t.Errorf("container %s is %s", c.Config.Name, c.State)
		}
		for _, part := range []string{"checkpoint/pages.img", "rootfs-diff.tar", "spec.dump", "config.dump"} {
			if _, err := os.Stat(filepath.Join(dir, c.ID, part)); err != nil {
				t.Error(err)
			}
		}
	}
	other := create(t, s, run(t, s, podConfig("other")), containerConfig("c"))
	idle := create(t, s, id, containerConfig("idle"))
	free := t.TempDir()
	for doing, tt := range map[string]struct {
		pod, dir string
		ids      []string
		want     errs.Kind
	}{
		"no pod":              {"nobody", free, ids, errs.NotFound},
		"no container":        {id, free, []string{"nobody"}, errs.NotFound},
		"none at all":         {id, free, nil, errs.Invalid},
		"one twice":           {id, free, []string{ids[0], ids[0]}, errs.Invalid},
		"one of another pod":  {id, free, []string{ids[0], other}, errs.Invalid},
		"one that is not up":  {id, free, []string{ids[0], idle}, errs.Conflict},
		"a folder that is in": {id, dir, ids, errs.Invalid},
		"no folder":           {id, filepath.Join(free, "none"), ids, errs.Invalid},
	} {
		if err := s.CheckpointPod(t.Context(), tt.pod, tt.dir, tt.ids); errs.KindOf(err) != tt.want {
			t.Errorf("%s: %v, want %s", doing, err, tt.want)
		}
	}
	failures := 0 // the second container's
	w.setCue(func(_ int, name string, after bool) error {
		if name == "checkpoint" && !after {
			if failures++; failures == 2 {
				return errs.New(errs.Unsupported, "criu does not work here")
			}
		}
		return nil
	})
	wantKind(t, s.CheckpointPod(t.Context(), id, free, ids), errs.Unsupported)
	w.setCue(nil)
	if left, err := os.ReadDir(free); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	for _, c := range ids {
		if is := state(t, s, c); is.State != spec.Running {
			t.Errorf("container %s is %s", c, is.State)
		}
	}
	check(t, s.CheckpointPod(t.Context(), id, free, ids))
}

// A checkpoint becomes a pod again: its containers wait for their start, and go
// on from what they had in memory and on disk.
func TestRestorePod(t *testing.T) {
	w := newWorld(t)
	s := w.node()
	old, dir, configs := podOfTwo(t, s)
	again := podConfig("web")
	again.UID, again.LogDir = "another", "/elsewhere"
	_, _, err := s.RestorePod(t.Context(), dir, podConfig("web"), configs)
	wantKind(t, err, errs.Exists)
	check(t, s.RemovePod(t.Context(), old))

	image := filepath.Join(w.dir, "image")
	check(t, os.WriteFile(filepath.Join(image, "deleted"), nil, 0o600))
	configs[0].Labels = map[string]string{"of": "now"}
	id, ids, err := s.RestorePod(t.Context(), dir, again, []spec.PodContainerConfig{configs[1], configs[0]})
	check(t, err, os.RemoveAll(dir)) // whoever has it may take it away
	for i, name := range []string{"two", "one"} {
		c := state(t, s, ids[i])
		if c.Pod != id || c.Config.Name != name || c.State != spec.Created {
			t.Errorf("%+v", c)
		}
		check(t, s.StartContainer(t.Context(), ids[i]))
		if got := w.restored[ids[i]]; got != "memory of default/web/"+name {
			t.Errorf("%s went on from %q", name, got)
		}
	}
	if c := state(t, s, ids[1]); c.Config.Labels["of"] != "now" || c.LogPath != "" || c.ImageRef != "registry/busybox@sha256:2" {
		t.Errorf("%+v", c)
	}
	if data, err := os.ReadFile(filepath.Join(image, "changed")); string(data) != "new" {
		t.Errorf("what it had changed: %q, %v", data, err)
	}
	if _, err := os.Stat(filepath.Join(image, "deleted")); err == nil {
		t.Error("what it had deleted is there")
	}
	if left, _ := filepath.Glob(filepath.Join(w.dir, "restored", "*")); len(left) > 0 {
		t.Errorf("left on disk: %v", left)
	}
	check(t, s.RemovePod(t.Context(), id))
	w.flush()
	check(t, w.empty())
}

func TestRestorePodOfSomethingElse(t *testing.T) {
	w := newWorld(t)
	s := w.node(func(c *pod.Config) {
		c.Runtimes = func(handler string) (string, error) {
			switch handler {
			case "":
				return "runc", nil
			case "crun":
				return "crun", nil
			}
			return "", errs.New(errs.NotFound, "there is no runtime %s", handler)
		}
	})
	old, dir, configs := podOfTwo(t, s)
	check(t, s.RemovePod(t.Context(), old))
	change := func(fn func(c *spec.PodContainerConfig)) []spec.PodContainerConfig {
		changed := []spec.PodContainerConfig{configs[0], configs[1]}
		fn(&changed[1])
		return changed
	}
	handled := func(handler string) spec.PodConfig {
		c := podConfig("web")
		c.Handler = handler
		return c
	}
	users := podConfig("web")
	ids := []spec.IDMapping{{Host: 1 << 20, Length: 1 << 16}}
	users.Security.Namespaces.User = &spec.PodUserNamespace{Mode: spec.NamespacePod, UIDs: ids, GIDs: ids}
	for doing, tt := range map[string]struct {
		dir        string
		config     spec.PodConfig
		containers []spec.PodContainerConfig
		want       errs.Kind
	}{
		"nothing":          {t.TempDir(), handled(""), configs, errs.Invalid},
		"one too few":      {dir, handled(""), configs[:1], errs.Invalid},
		"one twice":        {dir, handled(""), []spec.PodContainerConfig{configs[0], configs[0]}, errs.Invalid},
		"another name":     {dir, handled(""), change(func(c *spec.PodContainerConfig) { c.Name = "three" }), errs.Invalid},
		"no such runtime":  {dir, handled("none"), configs, errs.NotFound},
		"a user namespace": {dir, users, configs, errs.Unsupported},
		"another runtime":  {dir, handled("crun"), configs, errs.Conflict},
		"no such image":    {dir, handled(""), change(func(c *spec.PodContainerConfig) { c.Image = "none" }), errs.NotFound},
		"another command":  {dir, handled(""), change(func(c *spec.PodContainerConfig) { c.Command = []string{"sh"} }), errs.Conflict},
		"other rights":     {dir, handled(""), change(func(c *spec.PodContainerConfig) { c.Security.NoNewPrivileges = true }), errs.Conflict},
		"another user":     {dir, handled(""), change(func(c *spec.PodContainerConfig) { c.Security.User = new(int64(7)) }), errs.Conflict},
		"a terminal":       {dir, handled(""), change(func(c *spec.PodContainerConfig) { c.TTY = true }), errs.Conflict},
		"one mount less":   {dir, handled(""), change(func(c *spec.PodContainerConfig) { c.Mounts = nil }), errs.Conflict},
		"another variable": {dir, handled(""), change(func(c *spec.PodContainerConfig) { c.Env = []string{"A=b"} }), errs.Conflict},
	} {
		if _, _, err := s.RestorePod(t.Context(), tt.dir, tt.config, tt.containers); errs.KindOf(err) != tt.want {
			t.Errorf("%s: %v, want %s", doing, err, tt.want)
		}
	}
	_, _, err := s.RestorePod(t.Context(), dir, handled(""), change(func(c *spec.PodContainerConfig) { c.Env = []string{"A=b"} }))
	if err == nil || !strings.Contains(err.Error(), `its environment: []; wanted: ["A=b"]`) {
		t.Errorf("what does not fit: %v", err)
	}
	if pods := s.Pods(); len(pods) > 0 {
		t.Errorf("left: %v", pods)
	}
	w.flush()
	check(t, w.empty())
}

// Where it is allowed a checkpoint takes the place of an image: an archive, or
// an image that says it is one.
func TestContainerOfACheckpoint(t *testing.T) {
	w := newWorld(t)
	s := w.node()
	archive := filepath.Join(t.TempDir(), "c.tar")
	id := create(t, s, run(t, s, podConfig("old")), containerConfig("app"))
	check(t, s.StartContainer(t.Context(), id), s.Checkpoint(t.Context(), id, archive))
	of := containerConfig("app")
	of.Image, of.Command = archive, nil
	id = run(t, s, podConfig("new"))
	_, err := s.CreateContainer(t.Context(), id, of)
	wantKind(t, err, errs.Conflict)
	w.annotations = map[string]string{"org.criu.checkpoint.container.name": "app"}
	_, err = s.CreateContainer(t.Context(), id, containerConfig("command"))
	check(t, err) // which is what it runs, whatever the image says
	check(t, s.Close())

	w.end()
	s = w.node(func(c *pod.Config) { c.RestoreByCreate = true })
	again := create(t, s, id, of)
	if c := state(t, s, again); c.ImageID != "sha256:1" || c.Config.Image != archive {
		t.Errorf("%+v", c)
	}
	oci, err := s.ContainerSpec(t.Context(), again)
	check(t, err, s.StartContainer(t.Context(), again))
	if w.restored[again] != "memory of default/old/app" || !slices.Equal(oci.Process.Args, []string{"sleep", "1d"}) {
		t.Errorf("it went on from %q as %v", w.restored[again], oci.Process.Args)
	}
	nothing := filepath.Join(t.TempDir(), "nothing.tar")
	check(t, os.WriteFile(nothing, []byte("no tar"), 0o600))
	for doing, tt := range map[string]struct {
		image string
		more  func(*spec.PodContainerConfig)
		want  errs.Kind
	}{
		"no archive":                   {nothing, func(*spec.PodContainerConfig) {}, errs.Invalid},
		"nothing there":                {nothing + "x", func(*spec.PodContainerConfig) {}, errs.NotFound},
		"an image without the parts":   {"busybox", func(*spec.PodContainerConfig) {}, errs.Invalid},
		"other rights than it had had": {archive, func(c *spec.PodContainerConfig) { c.Security.NoNewPrivileges = true }, errs.Conflict},
	} {
		c := containerConfig("other")
		c.Image = tt.image
		tt.more(&c)
		if _, err := s.CreateContainer(t.Context(), id, c); errs.KindOf(err) != tt.want {
			t.Errorf("%s: %v, want %s", doing, err, tt.want)
		}
	}
	for _, p := range s.Pods() {
		check(t, s.RemovePod(t.Context(), p.ID))
	}
	w.flush()
	check(t, w.empty())
}
