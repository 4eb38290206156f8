package containerd

import (
	"archive/tar"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"berth/image/registrytest"
	"berth/test/machine"
)

// TestIntegrationSuite runs containerd's tests of its client; integration.sh
// starts it, for it takes minutes. The images that they pull from registries of
// the internet come from one here, which answers to those names.
func TestIntegrationSuite(t *testing.T) {
	suite := os.Getenv("CLIENTS_SUITE")
	if suite == "" {
		t.Skip("skipped: test/containerd/integration.sh runs this")
	}
	machine.Need(t, filepath.Join(clients, "ctr"))
	dir := t.TempDir()
	// The suite's folders have fixed names: here they are this run's own.
	const state = "/run/containerd-test"
	for _, fixed := range []string{"/var/lib/containerd-test", state} {
		own := filepath.Join(dir, filepath.Base(filepath.Dir(fixed)))
		machine.Must(t, os.MkdirAll(fixed, 0o755)) //nolint:gosec // containers with shifted owners pass through it
		machine.Must(t, os.MkdirAll(own, 0o755))   //nolint:gosec // as above
		machine.Must(t, unix.Mount(own, fixed, "", unix.MS_BIND, ""))
		t.Cleanup(func() { _ = unix.Unmount(fixed, unix.MNT_DETACH) })
	}
	authority, index := hub(t, dir)
	binary := buildSuite(t, suite, index)
	path := filepath.Join(clients, "../integration/bin") + ":" + filepath.Dir(program) + ":" + clients
	if peer {
		path = clients
	}
	output, err := os.Create(filepath.Join(clients, "../integration", map[bool]string{true: "containerd", false: "berth"}[peer]+".txt"))
	machine.Must(t, err)
	defer output.Close()
	cmd := exec.Command(binary, append([]string{"-test.v", "-test.root", "-no-criu", "-no-shim-cgroup", "-test.timeout", "6m", "-test.skip", "TestBindLowPortNonOpt"}, strings.Fields(os.Getenv("CLIENTS_SUITE_ARGS"))...)...)
	cmd.Dir = filepath.Join(suite, "integration/client")
	path += ":" + filepath.Join(filepath.Dir(binary), "bin")
	cmd.Env = append(os.Environ(), "PATH="+path+":"+os.Getenv("PATH")+":/usr/sbin:/sbin", "SSL_CERT_FILE="+authority)
	cmd.Stdout, cmd.Stderr = output, output
	ran := cmd.Run()
	if text, err := os.ReadFile(filepath.Join(state, "keeper.pid")); err == nil { // it outlives its node
		if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && pid > 1 {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	text, err := os.ReadFile(output.Name())
	machine.Must(t, err)
	counts := map[string]int{}
	for _, line := range regexp.MustCompile(`(?m)^--- (PASS|FAIL|SKIP): \S+`).FindAllStringSubmatch(string(text), -1) {
		counts[line[1]]++
		if line[1] != "PASS" {
			t.Log(line[0])
		}
	}
	t.Logf("%d pass, %d fail, %d skip (%v); all that was said: %s", counts["PASS"], counts["FAIL"], counts["SKIP"], ran, output.Name())
	if counts["PASS"] == 0 {
		t.Errorf("nothing passes: %v\n%s", ran, text[max(0, len(text)-4000):])
	}
}

// buildSuite makes the suite's program in a copy of containerd's module. It
// knows one image by its digest, which becomes the digest of ours; nothing else
// is changed.
func buildSuite(t *testing.T, module string, index digest.Digest) (binary string) {
	t.Helper()
	source := filepath.Join(clients, "../integration/source")
	machine.Must(t, os.RemoveAll(source))
	if out, err := exec.Command("cp", "-r", "--no-preserve=mode", module, source).CombinedOutput(); err != nil {
		t.Fatalf("copy containerd's module: %v\n%s", err, out)
	}
	list := filepath.Join(source, "integration/images/image_list.go")
	text, err := os.ReadFile(list)
	machine.Must(t, err)
	text = regexp.MustCompile(`(containerd/busybox@)sha256:[0-9a-f]{64}`).ReplaceAll(text, []byte("${1}"+index.String()))
	machine.Must(t, os.WriteFile(list, text, 0o600))
	binary = filepath.Join(source, "client.test")
	for _, args := range [][]string{
		{"test", "-c", "-o", binary, "./integration/client"},
		{"build", "-o", filepath.Join(source, "bin", "runc-fp"), "./integration/failpoint/cmd/runc-fp"}, // a runc that some tests have fail
	} {
		build := exec.Command("go", args...)
		build.Dir = source
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	return binary
}

// hub is a registry with the images of the suite, which answers as those that
// have them. It gives the certificate to trust, and busybox's digest.
func hub(t *testing.T, dir string) (authority string, index digest.Digest) {
	t.Helper()
	r := registrytest.New(t)
	images := busybox(t)
	other := func(files ...registrytest.File) []registrytest.Image {
		top := registrytest.Gzip(t, registrytest.Tar(t, files...))
		layers := append(append([]registrytest.Layer{}, images[0].Layers...), top)
		foreign := registrytest.Make(t, []registrytest.Layer{registrytest.Gzip(t, registrytest.Tar(t, append(files, registrytest.Text("etc/issue", "for another machine\n"))...))}, registrytest.Platform("linux", "arm64", "v8"))
		return []registrytest.Image{registrytest.Make(t, layers, registrytest.Runs(images[0].Config.Config)), foreign}
	}
	s390x := registrytest.Make(t, images[1].Layers, registrytest.Platform("linux", "s390x", ""))
	index = r.PushIndex(t, "containerd/busybox", "1.36", images...).Digest
	r.PushIndex(t, "e2e-test-images/busybox", "1.29-2", append(other(registrytest.Text("etc/version", "1.29\n")), s390x)...)
	r.PushIndex(t, "pause", "3.10.2", other(registrytest.Text("pause", "3.10\n"))...)
	r.PushIndex(t, "pause", "3.6", other(registrytest.Text("pause", "3.6\n"))...)
	r.PushIndex(t, "containerd/alpine", "3.14.0", images...)
	r.PushIndex(t, "containerd/volume-copy-up", "2.2", other(registrytest.Text("test_dir/test_file", "test_content\n"))...)
	r.PushIndex(t, "containerd/volume-ownership", "2.1", other(
		registrytest.File{Header: tar.Header{Name: "test_dir/", Mode: 0o755, Uid: 65534, Gid: 65534}},
		registrytest.File{Header: tar.Header{Name: "usr/bin/passwd", Mode: 0o4755}, Body: "#!/bin/sh\n"},
		registrytest.File{Header: tar.Header{Name: "bin/bash", Mode: 0o755}, Body: "#!/bin/sh\nexec /bin/sh \"$@\"\n"})...)
	r.PushIndex(t, "containerd/windows/nanoserver", "1809", registrytest.Make(t, images[1].Layers, registrytest.Platform("windows", "amd64", "")))

	return answer(t, dir, r, "ghcr.io", "registry.k8s.io"), index
}

// answer has this machine take itself for the hosts, and hands what they are
// asked by HTTPS to the registry.
func answer(t *testing.T, dir string, r *registrytest.Registry, hosts ...string) (authority string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	machine.Must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "tests"}, DNSNames: hosts, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	machine.Must(t, err)
	authority = filepath.Join(dir, "authority.pem")
	machine.Must(t, os.WriteFile(authority, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))

	known := "127.0.0.1 localhost"
	for _, host := range hosts {
		known += " " + host
	}
	names := filepath.Join(dir, "hosts")
	machine.Must(t, os.WriteFile(names, []byte(known+"\n"), 0o644)) //nolint:gosec // as /etc/hosts is
	machine.Must(t, unix.Mount(names, "/etc/hosts", "", unix.MS_BIND, ""))
	t.Cleanup(func() { _ = unix.Unmount("/etc/hosts", unix.MNT_DETACH) })

	to, err := url.Parse(r.URL)
	machine.Must(t, err)
	listener, err := net.Listen("tcp", "127.0.0.1:443")
	machine.Must(t, err)
	front := httptest.NewUnstartedServer(&httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) { p.SetURL(to) }})
	front.Config.ErrorLog = nil
	front.Listener = listener
	front.TLS = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	front.StartTLS()
	t.Cleanup(func() { front.CloseClientConnections(); front.Close() })
	return authority
}
