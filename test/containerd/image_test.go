package containerd

import (
	"archive/tar"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/image/registrytest"
	"berth/test/machine"
)

// busyboxName is what the image of these tests is called in its registry.
const busyboxName = "library/busybox:1"

// busyboxTar is Debian's busybox with a link for each of its applets.
var busyboxTar = sync.OnceValues(func() ([]registrytest.File, error) {
	body, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, err
	}
	applets, err := exec.Command("/bin/busybox", "--list").Output()
	if err != nil {
		return nil, err
	}
	folder := func(name string, mode int64) registrytest.File {
		return registrytest.File{Header: tar.Header{Name: name, Mode: mode}}
	}
	files := []registrytest.File{
		folder("bin/", 0o755), folder("dev/", 0o755), folder("etc/", 0o755), folder("home/", 0o755), folder("proc/", 0o755), folder("root/", 0o700), folder("run/", 0o755),
		folder("sys/", 0o755), folder("tmp/", 0o1777), folder("usr/", 0o755), folder("usr/bin/", 0o755), folder("var/", 0o755), folder("var/tmp/", 0o1777),
		{Header: tar.Header{Name: "bin/busybox", Mode: 0o755}, Body: string(body)},
		registrytest.Text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/:/bin/false\nbin:x:2:2:bin:/bin:/bin/false\nsys:x:3:3:sys:/dev:/bin/false\nwww-data:x:33:33:www:/home:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
		registrytest.Text("etc/group", "root:x:0:\ndaemon:x:1:\nbin:x:2:\nsys:x:3:\nadm:x:4:\ntty:x:5:\nwheel:x:10:root\nwww-data:x:33:\nnogroup:x:65534:\n"),
	}
	for applet := range strings.FieldsSeq(string(applets)) {
		if applet != "busybox" {
			files = append(files, registrytest.File{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + applet, Linkname: "busybox"}})
		}
	}
	return files, nil
})

// busybox is the image for this machine and the same for another one, which
// nobody runs: two layers, so that there is something to stack.
func busybox(t testing.TB) []registrytest.Image {
	t.Helper()
	files, err := busyboxTar()
	if err != nil {
		t.Skipf("skipped: busybox-static is not installed: %v", err)
	}
	base := registrytest.Gzip(t, registrytest.Tar(t, files...))
	top := registrytest.Gzip(t, registrytest.Tar(t, registrytest.Text("etc/issue", "busybox of the tests\n"), registrytest.File{Header: tar.Header{Name: "data/", Mode: 0o755}}, registrytest.Text("data/seed", "seed\n")))
	config := registrytest.Runs(ocispec.ImageConfig{Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, Cmd: []string{"sh"}})
	foreign := registrytest.Gzip(t, registrytest.Tar(t, registrytest.Text("etc/issue", "for another machine\n")))
	return []registrytest.Image{
		registrytest.Make(t, []registrytest.Layer{base, top}, config),
		registrytest.Make(t, []registrytest.Layer{foreign}, config, registrytest.Platform("linux", "arm64", "v8")),
	}
}

func pushBusybox(t testing.TB, r *registrytest.Registry) {
	t.Helper()
	repository, tag, _ := strings.Cut(busyboxName, ":")
	r.PushIndex(t, repository, tag, busybox(t)...)
}

// archive writes the image for this machine as a tar with an OCI layout, under
// the name.
func archive(t testing.TB, dir, name string) (path string) {
	t.Helper()
	path = filepath.Join(dir, "busybox.tar")
	machine.Must(t, os.WriteFile(path, registrytest.Archive(t, busybox(t)[0], name), 0o600))
	return path
}

// haltBlobs has the registry wait with each blob until release is called, or
// its client goes; halted says that one is asked for.
func (e *engine) haltBlobs() (halted chan struct{}, release func()) {
	halted, open := make(chan struct{}, 100), make(chan struct{})
	e.registry.Break(registrytest.Fault{
		Match: registrytest.Blobs(),
		Handler: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			halted <- struct{}{}
			select {
			case <-open:
			case <-r.Context().Done():
			}
			next.ServeHTTP(w, r)
		},
	})
	return halted, sync.OnceFunc(func() { close(open) })
}
