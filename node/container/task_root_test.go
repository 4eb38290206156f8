package container

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/snapshot"
)

func TestParseMount(t *testing.T) {
	for name, c := range map[string]struct {
		m    snapshot.Mount
		kind errs.Kind
	}{
		"bind":               {snapshot.Mount{Type: "bind", Source: "/a", Options: []string{"rbind", "ro"}}, ""},
		"bind by its option": {snapshot.Mount{Source: "/a", Options: []string{"rbind", "rprivate"}}, ""},
		"overlay":            {snapshot.Mount{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=/a:/b", "index=off", "ro"}}, ""},
		"relative bind":      {snapshot.Mount{Type: "bind", Source: "a"}, errs.Invalid},
		"bind with data":     {snapshot.Mount{Type: "bind", Source: "/a", Options: []string{"lowerdir=/b"}}, errs.Invalid},
		"no type":            {snapshot.Mount{Source: "/a"}, errs.Invalid},
		"type of a path":     {snapshot.Mount{Type: "../x", Source: "/a"}, errs.Invalid},
		"loop":               {snapshot.Mount{Type: "ext4", Source: "/a", Options: []string{"loop"}}, errs.Unsupported},
		"null byte":          {snapshot.Mount{Type: "overlay", Options: []string{"lowerdir=\x00"}}, errs.Invalid},
	} {
		if _, err := parseMount(c.m); errs.KindOf(err) != c.kind {
			t.Errorf("%s: %v, want %q", name, err, c.kind)
		}
	}
	m, err := parseMount(snapshot.Mount{Type: "bind", Source: "/a", Options: []string{"rbind", "ro", "nosuid", "rw", "rslave"}})
	if err != nil || m.flags != unix.MS_BIND|unix.MS_REC|unix.MS_NOSUID || len(m.propagate) != 1 || m.propagate[0] != unix.MS_SLAVE|unix.MS_REC {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestKernelRoots(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts")
	}
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	target := at("target")
	t.Cleanup(func() {
		if err := (kernelRoots{}).Unmount(t.Context(), target); err != nil {
			t.Error(err)
		}
	})
	for _, name := range []string{"target", "lower", "upper", "work", "bound"} {
		if err := os.Mkdir(at(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var layers []string
	for i := range 120 { // more than fits into one page
		layer := at(fmt.Sprintf("layer-%03d-%s", i, strings.Repeat("x", 60)))
		if err := os.Mkdir(layer, 0o755); err != nil {
			t.Fatal(err)
		}
		layers = append(layers, layer)
	}
	for _, file := range []string{at("lower/low"), at("bound/b"), layers[119] + "/deep"} {
		if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	writable := []string{"upperdir=" + at("upper"), "workdir=" + at("work")}
	for name, c := range map[string]struct {
		mounts []snapshot.Mount
		file   string
		kind   errs.Kind
	}{
		"bind":         {[]snapshot.Mount{{Type: "bind", Source: at("bound"), Options: []string{"rbind", "rw"}}}, "b", ""},
		"read-only":    {[]snapshot.Mount{{Type: "bind", Source: at("bound"), Options: []string{"bind", "ro", "rprivate"}}}, "b", ""},
		"overlay":      {[]snapshot.Mount{{Type: "overlay", Source: "overlay", Options: append([]string{"lowerdir=" + at("lower")}, writable...)}}, "low", ""},
		"many layers":  {[]snapshot.Mount{{Type: "overlay", Source: "overlay", Options: append([]string{"lowerdir=" + strings.Join(layers, ":")}, writable...)}}, "deep", ""},
		"two":          {[]snapshot.Mount{{Type: "tmpfs", Source: "tmpfs", Options: []string{"size=64k"}}, {Type: "bind", Source: at("bound"), Options: []string{"bind"}}}, "b", ""},
		"second fails": {[]snapshot.Mount{{Type: "tmpfs", Source: "tmpfs"}, {Type: "bind", Source: at("nowhere"), Options: []string{"bind"}}}, "", errs.NotFound},
		"no such type": {[]snapshot.Mount{{Type: "nosuchfs", Source: "x"}}, "", errs.Unsupported},
		"bad option":   {[]snapshot.Mount{{Type: "tmpfs", Source: "tmpfs", Options: []string{"nonsense=1"}}}, "", errs.Invalid},
	} {
		err := kernelRoots{}.Mount(t.Context(), c.mounts, target)
		if errs.KindOf(err) != c.kind {
			t.Errorf("%s: %v, want %q", name, err, c.kind)
		}
		if c.kind == "" {
			if _, err := os.Stat(filepath.Join(target, c.file)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			err := os.WriteFile(filepath.Join(target, "new"), nil, 0o600)
			if readOnly := name == "read-only"; readOnly != errors.Is(err, unix.EROFS) || !readOnly && err != nil {
				t.Errorf("%s: write: %v", name, err)
			}
			if err := (kernelRoots{}).Unmount(t.Context(), target); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if entries, err := os.ReadDir(target); err != nil || len(entries) > 0 {
			t.Errorf("%s is left: %v, %v", name, entries, err)
		}
	}
}

func TestClearTreeStopsAtMounts(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts")
	}
	dir := filepath.Join(t.TempDir(), "bundle")
	keep := t.TempDir()
	for _, folder := range []string{filepath.Join(dir, "rootfs"), filepath.Join(dir, "of/a/runtime")} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(keep, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// What a runtime makes in a root on which nothing is mounted.
	if err := os.MkdirAll(filepath.Join(dir, "rootfs/proc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{"rootfs", "of/a/runtime"} {
		if err := unix.Mount(keep, filepath.Join(dir, target), "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := clearTree(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(keep, "precious")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the bundle: %v", err)
	}
}
