package snapshotter

import (
	"archive/tar"
	"os"
	"path/filepath"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/image/registrytest"
	"berth/test/machine"
)

// imageName is the image of these tests, as containerd and Docker know it.
const imageName = "docker.io/library/layered:1"

// layered is an image of busybox with a layer of files on it, on that one which
// deletes, replaces and hides some, and more on that.
func layered(t testing.TB, more ...registrytest.Layer) registrytest.Image {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("skipped: busybox-static is not installed")
	}
	base := []registrytest.File{{Header: tar.Header{Name: "bin/", Mode: 0o755}}, {Header: tar.Header{Name: "bin/busybox", Mode: 0o755}, Body: string(busybox)}}
	for _, applet := range []string{"sh", "cat", "echo", "sleep", "ls", "stat", "touch", "rm", "find", "md5sum"} {
		base = append(base, registrytest.File{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + applet, Linkname: "busybox"}})
	}
	for _, dir := range []string{"etc/", "dev/", "proc/", "sys/", "tmp/"} {
		base = append(base, registrytest.File{Header: tar.Header{Name: dir, Mode: 0o755}})
	}
	files := []registrytest.File{
		registrytest.Text("etc/kept", "kept\n"), registrytest.Text("etc/replaced", "old\n"), registrytest.Text("etc/deleted", "deleted\n"),
		{Header: tar.Header{Name: "private/", Mode: 0o700, Uid: 33}},
		registrytest.Text("hidden/a", "a\n"), registrytest.Text("hidden/b", "b\n"),
		{Header: tar.Header{Name: "owned", Uid: 33, Gid: 34, Mode: 0o4750}, Body: "owned\n"},
		{Header: tar.Header{Typeflag: tar.TypeLink, Name: "linked", Linkname: "owned", Uid: 33, Gid: 34, Mode: 0o4750}},
	}
	changes := []registrytest.File{
		registrytest.Text("etc/replaced", "new\n"), registrytest.Text("etc/.wh.deleted", ""),
		{Header: tar.Header{Name: "hidden/", Mode: 0o755}},
		registrytest.Text("hidden/.wh..wh..opq", ""), registrytest.Text("hidden/c", "c\n"),
	}
	layers := []registrytest.Layer{
		registrytest.Gzip(t, registrytest.Tar(t, base...)), registrytest.Gzip(t, registrytest.Tar(t, files...)), registrytest.Gzip(t, registrytest.Tar(t, changes...)),
	}
	return registrytest.Make(t, append(layers, more...), registrytest.Runs(ocispec.ImageConfig{Env: []string{"PATH=/bin"}, Cmd: []string{"sh"}}))
}

// shown is what a container of the image sees, by look.
const (
	look  = "cat /etc/kept /etc/replaced; ls /hidden; stat -c '%u %g %a %h' /linked; [ ! -e /etc/deleted ] && echo gone"
	shown = "kept\nnew\nc\n33 34 4750 2\ngone\n"
)

// implied is a layer that does not say how the folders look that its files are
// in: one is in the image below, one on the machine alone.
func implied(t testing.TB) registrytest.Layer {
	t.Helper()
	return registrytest.Gzip(t, registrytest.Tar(t, registrytest.Text("private/added", "added\n"), registrytest.Text("root/added", "added\n")))
}

// ociArchive writes the image as a tar with an OCI layout.
func ociArchive(t testing.TB, image registrytest.Image) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "image.tar")
	machine.Must(t, os.WriteFile(path, registrytest.Archive(t, image, imageName), 0o600))
	return path
}
