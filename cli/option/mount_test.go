package option_test

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"berth/base/errs"
	"berth/cli/option"
	"berth/spec"
)

func TestVolume(t *testing.T) {
	for text, want := range map[string]spec.MountPoint{
		"/data":              {Type: "volume", Target: "/data", Anonymous: true},
		"data:/data":         {Type: "volume", Source: "data", Target: "/data"},
		"data:/data:ro":      {Type: "volume", Source: "data", Target: "/data", ReadOnly: true},
		"data:/data:nocopy":  {Type: "volume", Source: "data", Target: "/data", NoCopy: true},
		"data:/data/":        {Type: "volume", Source: "data", Target: "/data"},
		"/a:/b":              {Type: "bind", Source: "/a", Target: "/b", CreateHost: true},
		"/a:/b:ro,z":         {Type: "bind", Source: "/a", Target: "/b", ReadOnly: true, CreateHost: true},
		"/a:/b:rw,rslave":    {Type: "bind", Source: "/a", Target: "/b", Propagation: "rslave", CreateHost: true},
		"./a:/b":             {Type: "bind", Source: "/home/ann/a", Target: "/b", CreateHost: true},
		"../a:/b":            {Type: "bind", Source: "/home/a", Target: "/b", CreateHost: true},
		".:/b":               {Type: "bind", Source: "/home/ann", Target: "/b", CreateHost: true},
		"/a/../c:/b":         {Type: "bind", Source: "/c", Target: "/b", CreateHost: true},
		"/a:/b:delegated,ro": {Type: "bind", Source: "/a", Target: "/b", ReadOnly: true, CreateHost: true},
	} {
		got, err := option.Volume(text, "/home/ann")
		check(t, text, got, want, err)
	}
	refuse(t, func(s string) error { _, err := option.Volume(s, "/"); return err }, map[string]string{
		"":                  "absolute path",
		"data":              "absolute path",
		"data:data":         "absolute path",
		"data:/":            "cannot be /",
		"data:/..":          "cannot be /",
		":/data":            "source is empty",
		"a/b:/data":         "paths begin with",
		"~/a:/data":         "paths begin with",
		"data:/data:xx":     `mode "xx" is not known`,
		"data:/data:ro,rw":  "on top of another",
		"data:/data:shared": `not known for a volume`,
		"/a:/data:nocopy":   `not known for a bind`,
		"a:/b:ro:c":         "expected [source:]target[:modes]",
	})
}

func TestMount(t *testing.T) {
	for text, want := range map[string]spec.MountPoint{
		"type=bind,source=/a,target=/b":                                  {Type: "bind", Source: "/a", Target: "/b"},
		"type=bind,src=./a,dst=/b,ro":                                    {Type: "bind", Source: "/home/ann/a", Target: "/b", ReadOnly: true},
		"type=bind,src=/a,destination=/b,readonly=false":                 {Type: "bind", Source: "/a", Target: "/b"},
		"type=bind,src=/a,dst=/b,bind-propagation=rshared":               {Type: "bind", Source: "/a", Target: "/b", Propagation: "rshared"},
		"type=bind,src=/a,dst=/b,bind-recursive=disabled":                {Type: "bind", Source: "/a", Target: "/b", Recursive: "disabled"},
		"type=bind,src=/a,dst=/b,bind-nonrecursive,bind-create-src=true": {Type: "bind", Source: "/a", Target: "/b", Recursive: "disabled", CreateHost: true},
		"source=data,target=/b,volume-nocopy":                            {Type: "volume", Source: "data", Target: "/b", NoCopy: true},
		"type=volume,target=/b":                                          {Type: "volume", Target: "/b", Anonymous: true},
		"type=tmpfs,target=/b,tmpfs-size=1m,tmpfs-mode=1770":             {Type: "tmpfs", Target: "/b", TmpfsSize: 1 << 20, TmpfsMode: 0o1770},
		`type=bind,"source=/a,b",target=/c`:                              {Type: "bind", Source: "/a,b", Target: "/c"},
	} {
		got, err := option.Mount(text, "/home/ann")
		check(t, text, got, want, err)
	}
	refuse(t, func(s string) error { _, err := option.Mount(s, "/"); return err }, map[string]string{
		"":                                           "separated by commas",
		"type=bind,source=/a":                        "a target is needed",
		"type=bind,target=/b":                        "must be a path",
		"type=bind,src=a,dst=/":                      "cannot be /",
		"src=/a,dst=/b":                              "say type=bind",
		"type=nfs,dst=/b":                            "expected bind, volume or tmpfs",
		"dst=/b,colour=red":                          `unknown key "colour"`,
		"dst=/b,source":                              "expected key=value",
		"dst=/b,ro=maybe":                            "expected true or false",
		"dst=/b,volume-opt=x=y":                      "berth volume create",
		"type=tmpfs,dst=/b,src=/a":                   "has no source",
		"type=tmpfs,dst=/b,volume-nocopy":            "does not go with type=tmpfs",
		"dst=/b,tmpfs-size=1":                        "do not go with type=volume",
		"dst=/b,bind-propagation=shared":             "do not go with type=volume",
		"type=bind,src=/a,dst=/b,bind-propagation=x": "expected one of",
		"type=tmpfs,dst=/b,tmpfs-mode=99":            "octal",
	})
}

func TestTmpfs(t *testing.T) {
	for text, want := range map[string]spec.MountPoint{
		"/run":                          {Type: "tmpfs", Target: "/run"},
		"/run:rw,noexec,size=64m":       {Type: "tmpfs", Target: "/run", Options: "noexec", TmpfsSize: 64 << 20},
		"/run:ro,mode=1777,nosuid,exec": {Type: "tmpfs", Target: "/run", ReadOnly: true, TmpfsMode: 0o1777, Options: "nosuid,exec"},
		"/run:size=50%":                 {Type: "tmpfs", Target: "/run", Options: "size=50%"},
	} {
		got, err := option.Tmpfs(text)
		check(t, text, got, want, err)
	}
	refuse(t, func(s string) error { _, err := option.Tmpfs(s); return err }, map[string]string{
		"run": "absolute", "/run:size=big": "size=big", "/run:mode=8": "octal",
	})
}

func check[T any](t *testing.T, text string, got, want T, err error) {
	t.Helper()
	if err != nil {
		t.Errorf("%q: %v", text, err)
	} else if !reflect.DeepEqual(got, want) {
		t.Errorf("%q:\n got %+v\nwant %+v", text, got, want)
	}
}

// refuse wants each text refused as invalid, with words of the reason.
func refuse(t *testing.T, read func(string) error, reasons map[string]string) {
	t.Helper()
	for text, reason := range reasons {
		err := read(text)
		if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), reason) {
			t.Errorf("%q: got %v, want an invalid error with %q", text, err, reason)
		}
	}
}

func FuzzMounts(f *testing.F) {
	for _, seed := range []string{"a:/b:ro", "type=bind,src=/a,dst=/b", "/run:size=1m,mode=1777", ":::", "\"", "type=tmpfs,dst=/x,tmpfs-size=9e99"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		volume, err := option.Volume(text, "/home/ann")
		valid(t, text, volume, err)
		mount, err := option.Mount(text, "/home/ann")
		valid(t, text, mount, err)
		tmpfs, err := option.Tmpfs(text)
		valid(t, text, tmpfs, err)
	})
}

// valid is what holds for every mount that is read.
func valid(t *testing.T, text string, m spec.MountPoint, err error) {
	t.Helper()
	switch {
	case err != nil && !errors.Is(err, errs.Invalid):
		t.Fatalf("%q: %v is not invalid", text, err)
	case err == nil && (!strings.HasPrefix(m.Target, "/") || m.Target == "/" || strings.HasSuffix(m.Target, "/..")):
		t.Fatalf("%q: target %q", text, m.Target)
	case err == nil && m.Type == "bind" && !strings.HasPrefix(m.Source, "/"):
		t.Fatalf("%q: source %q", text, m.Source)
	case err == nil && m.Type == "volume" && strings.ContainsAny(m.Source, "/ \x00"):
		t.Fatalf("%q: volume %q", text, m.Source)
	}
}
