package cli

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/spf13/cobra"

	"berth/base/errs"
)

// options are buildctl's arguments for a line of flags, but for those of no
// flag at all.
func options(t testing.TB, line ...string) (string, error) {
	t.Helper()
	f := &buildFlags{}
	cmd := &cobra.Command{}
	f.add(cmd)
	if err := cmd.ParseFlags(line); err != nil {
		t.Fatal(err)
	}
	args, err := f.options()
	text := strings.Join(args, " ")
	for _, usual := range []string{"--progress auto", "--opt image-resolve-mode=local", "--output type=image,dangling-name-prefix=<none>"} {
		text = strings.Join(strings.Fields(strings.Replace(text, usual, "", 1)), " ")
	}
	return text, err
}

func TestBuildOptions(t *testing.T) {
	t.Setenv("BUILDKIT_PROGRESS", "")
	t.Setenv("SOURCE_DATE_EPOCH", "")
	t.Setenv("FROM_HERE", "there")
	for _, test := range []struct{ flags, want string }{
		{"", ""},
		{"-t a -t b:1 -t docker.io/library/a:latest", `--output type=image,"name=docker.io/library/a:latest,docker.io/library/b:1"`},
		{"-t r:5/a --push", "--output type=image,push=true,name=r:5/a:latest"},
		{"--build-arg A=b=c --build-arg FROM_HERE --build-arg NOT_HERE --label k --label l=m,n", "--opt build-arg:A=b=c --opt build-arg:FROM_HERE=there --opt label:k= --opt label:l=m,n"},
		{"--target x --platform linux/amd64,linux/arm64 --platform linux/386", "--opt target=x --opt platform=linux/amd64,linux/arm64,linux/386"},
		{"--pull --no-cache", "--opt image-resolve-mode=pull --no-cache"},
		{"--no-cache-filter a --no-cache-filter b", "--opt no-cache=a,b"},
		{"--add-host a:1.2.3.4 --add-host b=[::1] --add-host c:host-gateway", "--opt add-hosts=a=1.2.3.4,b=::1,c=host-gateway"},
		{"--network host", "--opt force-network-mode=host --allow network.host"},
		{"--network host --allow network.host --allow security.insecure", "--allow network.host --allow security.insecure --opt force-network-mode=host"},
		{"--network none", "--opt force-network-mode=none"},
		{"--network default", ""},
		{"--cache-from a --cache-from type=local,src=x --cache-to type=inline", "--import-cache type=registry,ref=docker.io/library/a:latest --import-cache type=local,src=x --export-cache type=inline"},
		{"--secret id=a,src=b --ssh default", "--secret id=a,src=b --ssh default"},
		{"--shm-size 2m --ulimit nofile=1:2 --ulimit nproc=3 --cgroup-parent /x", "--opt shm-size=2097152 --opt ulimit=nofile=1:2,nproc=3 --opt cgroup-parent=/x"},
		{"--build-context a=. --build-context b=docker-image://x", "--local a=. --opt context:a=local:a --opt context:b=docker-image://x"},
		{"--build-context a=oci-layout:///d/l@sha256:0", "--oci-layout layout-0=/d/l --opt context:a=oci-layout://layout-0@sha256:0"},
		{"--build-context a=oci-layout:///d/l:tag", "--oci-layout layout-0=/d/l --opt context:a=oci-layout://layout-0:tag"},
		{"--attest type=provenance,mode=max --sbom true", "--opt attest:provenance=mode=max --opt attest:sbom="},
		{"--attest type=sbom,generator=x --sbom false --provenance mode=min", "--opt attest:provenance=mode=min"},
		{"-o out", "--output type=local,dest=out"},
		{"-o -", "--output type=tar,dest=-"},
		{"-o dest=out,type=local", "--output type=local,dest=out"},
		{"-t a -o type=docker", "--output type=image,name=docker.io/library/a:latest"},
		{"-t a -o type=docker,dest=x.tar", "--output type=docker,dest=x.tar,name=docker.io/library/a:latest"},
		{"-t a -o type=registry,name=b", "--output type=image,name=b,push=true"},
		{"-t a -o out --load", "--output type=local,dest=out --output type=image,name=docker.io/library/a:latest"},
		{"-o type=cacheonly", ""},
	} {
		if got, err := options(t, strings.Fields(test.flags)...); got != test.want || err != nil {
			t.Errorf("%s:\n got %s, %v\nwant %s", test.flags, got, err, test.want)
		}
	}
	if got, err := options(t, "-q"); got != "--progress quiet" || err != nil {
		t.Errorf("-q: %s, %v", got, err)
	}
	t.Setenv("SOURCE_DATE_EPOCH", "0")
	if got, _ := options(t); got != "--opt build-arg:SOURCE_DATE_EPOCH=0" {
		t.Errorf("with SOURCE_DATE_EPOCH: %s", got)
	}
}

func TestBuildOptionsRefused(t *testing.T) {
	for flags, says := range map[string]string{
		"-t A": "must be lowercase", "-t a@sha256:" + strings.Repeat("0", 64): "digest", "--push": "-t",
		"--progress loud": "auto", "--build-arg =x": "NAME", "--label =x": "key=value", "--add-host x": "name:address",
		"--network bridge": "default, host, none", "--ulimit x": "ulimit", "--shm-size x": "--shm-size", "--build-context x": "NAME=",
		"--build-context x=/nosuch": "no folder", "--attest mode=max": "type=", "--attest type=x": "provenance or sbom",
		"-o type=nosuch": "type=image", "-o type=local,x": "key=value", `-o "`: "--output", `--attest "`: "--attest",
	} {
		got, err := options(t, strings.Fields(flags)...)
		if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %s, %v, want it to say %q", flags, got, err, says)
		}
	}
}

// where are a context's arguments, with the scratch folder called S.
func where(t *testing.T, p *program, file, source string) (string, string, error) {
	t.Helper()
	scratch := t.TempDir()
	c, err := p.buildContext(file, source, scratch)
	return strings.ReplaceAll(strings.Join(c.arguments(), " "), scratch, "S"), scratch, err
}

func TestBuildContext(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, name := range []string{"a/Dockerfile", "a/sub/Other", "lower/dockerfile", "elsewhere/D", "empty/x"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct{ file, source, want, fails string }{
		{"", "a", "--opt filename=Dockerfile --local context=a --local dockerfile=a", ""},
		{"a/sub/Other", "a", "--opt filename=Other --local context=a --local dockerfile=a/sub", ""},
		{"elsewhere/D", "a", "--opt filename=D --local context=a --local dockerfile=elsewhere", ""},
		{"", "lower", "--opt filename=dockerfile --local context=lower --local dockerfile=lower", ""},
		{"-", "a", "--opt filename=Dockerfile --local context=a --local dockerfile=S/dockerfile", ""},
		{"", "https://x/y.git#main:sub", "--opt filename=Dockerfile --opt context=https://x/y.git#main:sub", ""},
		{"d/D", "git@x:y.git", "--opt filename=d/D --opt context=git@x:y.git", ""},
		{"-", "git://x/y", "--opt filename=Dockerfile --opt context=git://x/y --opt dockerfilekey=dockerfile --local dockerfile=S/dockerfile", ""},
		{"", "empty", "", "there is no Dockerfile empty/Dockerfile: name it by -f"},
		{"nosuch", "a", "", "there is no Dockerfile nosuch"},
		{"a", "a", "", "it is a folder"},
		{"", "nosuch", "", "no such file"},
		{"", "a/Dockerfile", "", "expected a folder"},
		{"-", "-", "", "both"},
	} {
		got, _, err := where(t, &program{stdin: strings.NewReader("FROM x")}, test.file, test.source)
		switch {
		case test.fails == "" && (err != nil || got != test.want):
			t.Errorf("-f %q %s: %s, %v\nwant %s", test.file, test.source, got, err, test.want)
		case test.fails != "" && (!errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), test.fails)):
			t.Errorf("-f %q %s: %v, want it to say %q", test.file, test.source, err, test.fails)
		}
	}
}

// archive is a tar of files, by name and content; a name with > is a link.
func archive(t testing.TB, files ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for i := 0; i < len(files); i += 2 {
		header := &tar.Header{Name: files[i], Mode: 0o640, Size: int64(len(files[i+1])), Typeflag: tar.TypeReg}
		if name, to, link := strings.Cut(files[i], ">"); link {
			header = &tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeSymlink}
		}
		if err := w.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(w, files[i+1])
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func compressed(t *testing.T, plain []byte) map[string][]byte {
	t.Helper()
	var gz, zs bytes.Buffer
	g := gzip.NewWriter(&gz)
	z, err := zstd.NewWriter(&zs)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []io.WriteCloser{g, z} {
		if _, err := w.Write(plain); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return map[string][]byte{"plain": plain, "gzip": gz.Bytes(), "zstd": zs.Bytes()}
}

func TestContextOnStdin(t *testing.T) {
	for how, content := range compressed(t, archive(t, "./Dockerfile", "FROM x", "deep/er/file", "body", "link>deep/er/file", "")) {
		got, scratch, err := where(t, &program{stdin: bytes.NewReader(content)}, "", "-")
		if want := "--opt filename=Dockerfile --local context=S/context --local dockerfile=S/context"; err != nil || got != want {
			t.Errorf("%s: %s, %v", how, got, err)
		}
		if body, err := os.ReadFile(filepath.Join(scratch, "context", "link")); string(body) != "body" {
			t.Errorf("%s: %q, %v", how, body, err)
		}
		if info, err := os.Stat(filepath.Join(scratch, "context", "deep/er/file")); err != nil || info.Mode() != 0o640 {
			t.Errorf("%s: %v, %v", how, info, err)
		}
	}
	got, scratch, err := where(t, &program{stdin: strings.NewReader("FROM x\n")}, "", "-")
	if want := "--opt filename=Dockerfile --local context=S/context --local dockerfile=S/dockerfile"; err != nil || got != want {
		t.Errorf("a Dockerfile: %s, %v", got, err)
	}
	if text, _ := os.ReadFile(filepath.Join(scratch, "dockerfile", "Dockerfile")); string(text) != "FROM x\n" {
		t.Errorf("the Dockerfile: %q", text)
	}
	for says, content := range map[string][]byte{
		"there is no Dockerfile": archive(t, "x", "y"),
		"xz -d":                  []byte("\xfd7zXZ\x00 and so on"),
		"unexpected EOF":         archive(t, "Dockerfile", strings.Repeat("x", 1000))[:1000],
		"context on stdin":       []byte("\x1f\x8bnot gzip"),
		"escapes":                archive(t, "out>/tmp", "", "out/file", "x"),
	} {
		if _, _, err := where(t, &program{stdin: bytes.NewReader(content)}, "", "-"); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want it to say %q", err, says)
		}
	}
	if _, _, err := where(t, &program{stdin: strings.NewReader("FROM x\n")}, "x", "-"); !errors.Is(err, errs.Invalid) {
		t.Errorf("a file of no archive: %v", err)
	}
}

// Nothing that comes on stdin gets out of its folder.
func FuzzContextOnStdin(f *testing.F) {
	f.Add(archive(f, "Dockerfile", "FROM x"))
	f.Add(archive(f, "../out", "x", "a>..", "", "a/b", "y"))
	f.Add(archive(f, "a>/", "", "a/etc/x", "y"))
	f.Fuzz(func(t *testing.T, content []byte) {
		above := t.TempDir()
		scratch := filepath.Join(above, "scratch")
		if err := os.Mkdir(scratch, 0o700); err != nil {
			t.Fatal(err)
		}
		_, _ = (&program{stdin: bytes.NewReader(content)}).buildContext("", "-", scratch)
		err := filepath.WalkDir(above, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && !strings.HasPrefix(path, scratch+"/") {
				t.Errorf("%s was written", path)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

func TestPruneFilters(t *testing.T) {
	seconds, others, err := untilFilter([]string{"until=90m", "type=regular", "id==x", "description~=RUN", "inuse"})
	if err != nil || seconds != 5400 || strings.Join(others, " ") != "type==regular id==x description~=RUN inuse" {
		t.Errorf("%d %q, %v", seconds, others, err)
	}
	for _, filter := range []string{"until=", "until=1", "until=1ms"} {
		if _, _, err := untilFilter([]string{filter}); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", filter, err)
		}
	}
}
