package pull_test

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/errs"
	"berth/image/pull"
	"berth/image/registrytest"
	"berth/spec"
)

const size = 3 << 20

// noisy is an image whose layer is large enough to be cut and stalled.
func noisy(t testing.TB, reg *registrytest.Registry, repository string, opts ...registrytest.Option) registrytest.Image {
	t.Helper()
	i := registrytest.Make(t, []registrytest.Layer{registrytest.Plain(t, registrytest.Noise(7, size))}, opts...)
	if reg != nil {
		reg.Push(t, repository, "1", i)
	}
	return i
}

func request(reg *registrytest.Registry, repository string) spec.PullRequest {
	return spec.PullRequest{Reference: reg.Host() + "/" + repository, Platform: "linux/amd64"}
}

func TestResumeAfterCuts(t *testing.T) {
	reg := registrytest.New(t)
	image := noisy(t, reg, "a")
	reg.Break(registrytest.Fault{Match: registrytest.Blobs(image.Layers[0].Digest), Times: 3, Handler: registrytest.Cut(700_001)})
	_, tars, err := pullAll(t, newPuller(newStore(t, t.TempDir())), request(reg, "a:1"))
	if err != nil || !bytes.Equal(tars[0], image.Layers[0].Tar) {
		t.Fatal(err)
	}
	var ranges []string
	for _, q := range reg.Requests(http.MethodGet, image.Layers[0].Digest.String()) {
		ranges = append(ranges, q.Range)
	}
	if got := fmt.Sprint(ranges); got != "[ bytes=700001- bytes=1400002- bytes=2100003-]" {
		t.Errorf("ranges asked for: %s", got)
	}
}

func TestResumeInTheNextProcess(t *testing.T) {
	reg := registrytest.New(t)
	image := noisy(t, reg, "a")
	dir := t.TempDir()
	reg.Break(registrytest.Fault{Match: registrytest.Blobs(image.Layers[0].Digest), Handler: registrytest.Cut(1 << 20)})
	p := newPuller(newStore(t, dir), func(c *pull.Config) { c.Remote.Attempts = 1 })
	if _, _, err := pullAll(t, p, request(reg, "a:1")); !errors.Is(err, errs.Unavailable) {
		t.Fatalf("cut for good: %v", err)
	}
	reg.Mend()
	_, tars, err := pullAll(t, newPuller(newStore(t, dir)), request(reg, "a:1"))
	if err != nil || !bytes.Equal(tars[0], image.Layers[0].Tar) {
		t.Fatal(err)
	}
	q := reg.Requests(http.MethodGet, image.Layers[0].Digest.String())
	if last := q[len(q)-1].Range; last != "bytes=1048576-" {
		t.Errorf("resumed with the range %q", last)
	}
}

func TestStall(t *testing.T) {
	reg := registrytest.New(t)
	image := noisy(t, reg, "a")
	brief := func(c *pull.Config) { c.Remote.Stall = 50 * time.Millisecond }
	t.Run("once", func(t *testing.T) {
		patient := func(c *pull.Config) { c.Remote.Stall = time.Second } // a machine at work is slow, too
		reg.Break(registrytest.Fault{Match: registrytest.Blobs(), Times: 1, Handler: registrytest.Stall(1 << 20)})
		if _, _, err := pullAll(t, newPuller(newStore(t, t.TempDir()), patient), request(reg, "a:1")); err != nil {
			t.Fatal(err)
		}
	})
	for _, at := range []int{0, 1000} {
		t.Run(fmt.Sprint("for ever after ", at), func(t *testing.T) {
			reg.Mend()
			reg.Break(registrytest.Fault{Match: registrytest.Blobs(image.Layers[0].Digest), Handler: registrytest.Stall(at)})
			_, _, err := pullAll(t, newPuller(newStore(t, t.TempDir()), brief), request(reg, "a:1"))
			if !errors.Is(err, errs.Timeout) || !strings.Contains(err.Error(), "no byte") {
				t.Fatal(err)
			}
		})
	}
}

func TestBadContentIsNotKept(t *testing.T) {
	image := noisy(t, nil, "")
	layer := image.Layers[0].Digest
	for name, c := range map[string]struct {
		handler func(http.ResponseWriter, *http.Request, http.Handler)
		kind    errs.Kind
		says    string
	}{
		"wrong digest": {registrytest.Flip(), errs.Invalid, "does not match its digest"},
		"truncated": {func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			w.Write(image.Blobs[layer][:size/2])
		}, errs.Unavailable, "of 3145728 bytes"},
		"too long": {func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			w.Write(append(image.Blobs[layer], 'x'))
		}, errs.Invalid, "longer than"},
		"not found": {registrytest.Status(404), errs.NotFound, "has no blobs"},
	} {
		t.Run(name, func(t *testing.T) {
			reg := registrytest.New(t)
			reg.Push(t, "a", "1", image)
			reg.Break(registrytest.Fault{Match: registrytest.Blobs(layer), Handler: c.handler})
			dir := t.TempDir()
			store := newStore(t, dir)
			_, _, err := pullAll(t, newPuller(store), request(reg, "a:1"))
			if !errors.Is(err, c.kind) || !strings.Contains(fmt.Sprint(err), c.says) {
				t.Errorf("got %v", err)
			}
			if store.Has(layer) {
				t.Error("the layer counts as whole")
			}
			if left, _ := filepath.Glob(dir + "/ingest/*"); len(left) > 0 {
				t.Error("left behind:", left)
			}
			reg.Mend()
			if _, tars, err := pullAll(t, newPuller(store), request(reg, "a:1")); err != nil || !bytes.Equal(tars[0], image.Layers[0].Tar) {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		status int
		header []string
		kind   errs.Kind
		says   string
		asked  int
	}{
		{401, []string{"WWW-Authenticate", `Basic realm="x"`}, errs.Anonymous, "docker login", 1},
		{403, nil, errs.Denied, "rights of the account", 1},
		{404, nil, errs.NotFound, "check the name", 1},
		{429, nil, errs.Exhausted, "log in for a higher limit", 5},
		{429, []string{"Retry-After", "3600"}, errs.Exhausted, "try again in 1h0m0s", 1},
		{500, nil, errs.Unavailable, "try again later", 5},
	} {
		t.Run(fmt.Sprint(c.status, c.header), func(t *testing.T) {
			reg := registrytest.New(t)
			reg.Break(registrytest.Fault{Handler: registrytest.Status(c.status, c.header...)})
			_, err := newPuller(newStore(t, t.TempDir())).Open(t.Context(), request(reg, "a:1"), nil)
			if errs.KindOf(err) != c.kind || !strings.Contains(fmt.Sprint(err), c.says) {
				t.Errorf("got %v", err)
			}
			if n := len(reg.Requests("", "/manifests/")); n != c.asked {
				t.Errorf("asked %d times, want %d", n, c.asked)
			}
		})
	}
}

func TestPassingFailuresAreTriedAgain(t *testing.T) {
	reg := registrytest.New(t)
	noisy(t, reg, "a")
	for _, status := range []int{429, 500, 503} {
		reg.Break(registrytest.Fault{Times: 1, Handler: registrytest.Status(status)})
	}
	reg.Break(registrytest.Fault{Times: 1, Handler: func(http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) }})
	var retried atomic.Int32
	i, err := newPuller(newStore(t, t.TempDir())).Open(t.Context(), request(reg, "a:1"), func(e spec.Progress) {
		if strings.HasPrefix(e.Status, "retrying") {
			retried.Add(1)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	i.Close()
	if retried.Load() != 4 {
		t.Errorf("%d retries were reported", retried.Load())
	}
}

func TestNobodyThere(t *testing.T) {
	reg := registrytest.New(t)
	req := request(reg, "a:1")
	reg.Close()
	if _, err := newPuller(newStore(t, t.TempDir())).Open(t.Context(), req, nil); !errors.Is(err, errs.Unavailable) {
		t.Error(err)
	}
}

func TestLogin(t *testing.T) {
	reg := registrytest.New(t)
	image := noisy(t, reg, "a/b")
	tokens := 0
	token := func(w http.ResponseWriter, r *http.Request) {
		tokens++
		r.ParseForm()
		user, password, basic := r.BasicAuth()
		if !basic {
			user, password = r.Form.Get("username"), r.Form.Get("password")
		}
		if r.Form.Get("refresh_token") != "long-lived" && (user != "me" || password != "secret") {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if s := r.Form.Get("scope"); s != "repository:a/b:pull" {
			t.Errorf("scope %q", s)
		}
		json.NewEncoder(w).Encode(map[string]string{"token": "short-lived", "access_token": "short-lived"})
	}
	guard := func(challenge, want string) {
		reg.Mend()
		reg.Break(registrytest.Fault{Handler: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			switch {
			case r.URL.Path == "/token":
				token(w, r)
			case r.Header.Get("Authorization") == want:
				next.ServeHTTP(w, r)
			default:
				w.Header().Set("WWW-Authenticate", challenge)
				w.WriteHeader(http.StatusUnauthorized)
			}
		}})
	}
	bearer := `Bearer realm="` + reg.URL + `/token",service="s",scope="repository:a/b:pull"`
	for _, c := range []struct {
		name, challenge, want string
		auth                  *spec.RegistryAuth
		kind                  errs.Kind
	}{
		{"basic", `Basic realm="x"`, "Basic bWU6c2VjcmV0", &spec.RegistryAuth{Username: "me", Password: "secret"}, ""},
		{"basic, wrong", `Basic realm="x"`, "Basic bWU6c2VjcmV0", &spec.RegistryAuth{Username: "me", Password: "guess"}, errs.Anonymous},
		{"token", bearer, "Bearer short-lived", &spec.RegistryAuth{Username: "me", Password: "secret"}, ""},
		{"token, wrong", bearer, "Bearer short-lived", &spec.RegistryAuth{Username: "me", Password: "guess"}, errs.Anonymous},
		{"token, nobody", bearer, "Bearer short-lived", nil, errs.Anonymous},
		{"identity token", bearer, "Bearer short-lived", &spec.RegistryAuth{IdentityToken: "long-lived"}, ""},
		{"registry token", bearer, "Bearer given", &spec.RegistryAuth{RegistryToken: "given"}, ""},
		{"registry token, wrong", bearer, "Bearer given", &spec.RegistryAuth{RegistryToken: "other"}, errs.Anonymous},
	} {
		t.Run(c.name, func(t *testing.T) {
			guard(c.challenge, c.want)
			req := request(reg, "a/b:1")
			req.Auth = c.auth
			_, tars, err := pullAll(t, newPuller(newStore(t, t.TempDir())), req)
			if errs.KindOf(err) != c.kind {
				t.Fatal(err)
			}
			if err == nil && !bytes.Equal(tars[0], image.Layers[0].Tar) {
				t.Error("content differs")
			}
		})
	}
}

func TestPlatforms(t *testing.T) {
	reg := registrytest.New(t)
	amd := noisy(t, nil, "")
	arm := registrytest.Make(t, []registrytest.Layer{registrytest.Plain(t, registrytest.Noise(8, 1000))}, registrytest.Platform("linux", "arm64", "v8"))
	v7 := registrytest.Make(t, []registrytest.Layer{registrytest.Plain(t, registrytest.Noise(9, 1000))}, registrytest.Platform("linux", "arm", "v7"), registrytest.Docker())
	index := reg.PushIndex(t, "a", "1", amd, arm, v7)
	for platform, want := range map[string]digest.Digest{
		"linux/amd64": amd.Manifest.Digest, "linux/arm64": arm.Manifest.Digest, "linux/arm64/v8": arm.Manifest.Digest,
		"linux/aarch64": arm.Manifest.Digest, "linux/arm/v7": v7.Manifest.Digest,
	} {
		req := request(reg, "a:1")
		req.Platform = platform
		i, _, err := pullAll(t, newPuller(newStore(t, t.TempDir())), req)
		if err != nil || i.Manifest.Digest != want || i.Target.Digest != index.Digest {
			t.Errorf("%s: %v", platform, err)
		}
	}
	req := request(reg, "a:1")
	req.Platform = "linux/riscv64"
	_, err := newPuller(newStore(t, t.TempDir())).Open(t.Context(), req, nil)
	if !errors.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "linux/amd64, linux/arm/v7, linux/arm64") {
		t.Errorf("no platform: %v", err)
	}
	req.Platform = "//"
	if _, err := newPuller(newStore(t, t.TempDir())).Open(t.Context(), req, nil); !errors.Is(err, errs.Invalid) {
		t.Errorf("nonsense: %v", err)
	}
}

func TestUnsupported(t *testing.T) {
	reg := registrytest.New(t)
	image := noisy(t, reg, "a")
	change := func(tag string, change func(*ocispec.Manifest)) {
		var m ocispec.Manifest
		if err := json.Unmarshal(image.Blobs[image.Manifest.Digest], &m); err != nil {
			t.Fatal(err)
		}
		change(&m)
		b, _ := json.Marshal(m)
		reg.PutManifest(t, "a", tag, m.MediaType, b)
	}
	change("foreign", func(m *ocispec.Manifest) {
		m.Layers[0].MediaType = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
	})
	change("strange", func(m *ocispec.Manifest) { m.Layers[0].MediaType = "application/x-novel" })
	change("helm", func(m *ocispec.Manifest) { m.Config.MediaType = "application/vnd.cncf.helm.config.v1+json" })
	change("fewer", func(m *ocispec.Manifest) { m.Layers = nil })
	change("negative", func(m *ocispec.Manifest) { m.Layers[0].Size = -1 })
	for tag, kind := range map[string]errs.Kind{"foreign": errs.Unsupported, "strange": errs.Unsupported, "helm": errs.Unsupported, "fewer": errs.Invalid, "negative": errs.Invalid} {
		if _, err := newPuller(newStore(t, t.TempDir())).Open(t.Context(), request(reg, "a:"+tag), nil); errs.KindOf(err) != kind {
			t.Errorf("%s: %v", tag, err)
		}
	}
	reg.Break(registrytest.Fault{Match: registrytest.Manifests, Handler: registrytest.Status(200, "Content-Type", "application/vnd.docker.distribution.manifest.v1+prettyjws")})
	if _, err := newPuller(newStore(t, t.TempDir())).Open(t.Context(), request(reg, "a:1"), nil); !errors.Is(err, errs.Unsupported) {
		t.Errorf("schema 1: %v", err)
	}
}

func TestBomb(t *testing.T) {
	reg := registrytest.New(t)
	reg.Push(t, "bomb", "1", registrytest.Make(t, []registrytest.Layer{registrytest.Gzip(t, make([]byte, 10<<20))}))
	_, _, err := pullAll(t, newPuller(newStore(t, t.TempDir()), func(c *pull.Config) { c.Limit = 1 << 20 }), request(reg, "bomb:1"))
	if !errors.Is(err, errs.Exhausted) {
		t.Error(err)
	}
}

func TestMirrors(t *testing.T) {
	upstream, mirror := registrytest.New(t), registrytest.New(t)
	image := noisy(t, mirror, "a")
	upstream.Push(t, "a", "1", image)
	certs := t.TempDir()
	dir := filepath.Join(certs, strings.Replace(upstream.Host(), ":", "_", 1)+"_")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	toml := fmt.Sprintf("server = %q\n[host.%q]\ncapabilities = [\"pull\", \"resolve\"]\n", upstream.URL, mirror.URL)
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(toml), 0o600); err != nil {
		t.Fatal(err)
	}
	configured := func(c *pull.Config) { c.Remote.CertDirs = []string{"/nowhere", certs} }
	req := request(upstream, "a:1")
	req.Auth = &spec.RegistryAuth{Username: "me", Password: "secret"}
	if _, _, err := pullAll(t, newPuller(newStore(t, t.TempDir()), configured), req); err != nil {
		t.Fatal(err)
	}
	if n := len(upstream.Requests(http.MethodGet, "")); n != 0 {
		t.Errorf("the registry itself was asked %d times", n)
	}
	for _, q := range mirror.Requests(http.MethodGet, "/v2/a/") {
		if q.Namespace != upstream.Host() || q.Authorization != "" {
			t.Errorf("the mirror was asked with %+v", q)
		}
	}
	mirror.Break(registrytest.Fault{Match: registrytest.Blobs(image.Layers[0].Digest), Handler: registrytest.Status(500)})
	if _, _, err := pullAll(t, newPuller(newStore(t, t.TempDir()), configured), req); err != nil {
		t.Fatal("a mirror without the layer:", err)
	}
	mirror.Close()
	if _, _, err := pullAll(t, newPuller(newStore(t, t.TempDir()), configured), req); err != nil {
		t.Fatal("no mirror:", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte("server = "), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := newPuller(newStore(t, t.TempDir()), configured).Open(t.Context(), req, nil); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "hosts.toml") {
		t.Errorf("an unreadable hosts.toml: %v", err)
	}
}

func TestCertificates(t *testing.T) {
	reg := registrytest.NewTLS(t)
	image := noisy(t, reg, "a")
	certs := t.TempDir()
	dir := filepath.Join(certs, strings.Replace(reg.Host(), ":", "_", 1)+"_")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	hosts := func(text string) {
		if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: reg.Certificate().Raw})
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), ca, 0o600); err != nil {
		t.Fatal(err)
	}
	configured := func(c *pull.Config) { c.Remote.CertDirs = []string{certs} }
	server := fmt.Sprintf("server = %q\n", reg.URL)
	hosts(server + "ca = \"ca.pem\"\n")
	_, tars, err := pullAll(t, newPuller(newStore(t, t.TempDir()), configured), request(reg, "a:1"))
	if err != nil || !bytes.Equal(tars[0], image.Layers[0].Tar) {
		t.Fatal("with the CA:", err)
	}
	hosts(server)
	if _, err := newPuller(newStore(t, t.TempDir()), configured).Open(t.Context(), request(reg, "a:1"), nil); !errors.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "put its CA into") {
		t.Errorf("without the CA: %v", err)
	}
	hosts(server + "skip_verify = true\n")
	if _, _, err := pullAll(t, newPuller(newStore(t, t.TempDir()), configured), request(reg, "a:1")); err != nil {
		t.Errorf("unverified: %v", err)
	}
	insecure := request(reg, "a:1")
	insecure.Insecure = true
	if _, _, err := pullAll(t, newPuller(newStore(t, t.TempDir())), insecure); err != nil {
		t.Errorf("insecure: %v", err)
	}
}

func TestOneDownloadForAll(t *testing.T) {
	reg := registrytest.New(t)
	image := noisy(t, reg, "a")
	store := newStore(t, t.TempDir())
	p := newPuller(store)
	var ready, all sync.WaitGroup
	ready.Add(8)
	for range 8 {
		all.Go(func() {
			i, err := p.Open(t.Context(), request(reg, "a:1"), nil)
			ready.Done()
			if err != nil {
				t.Error(err)
				return
			}
			defer i.Close()
			ready.Wait()
			b, err := readLayer(t, i, 0)
			if err != nil || !bytes.Equal(b, image.Layers[0].Tar) {
				t.Error("layer:", err)
			}
		})
	}
	all.Wait()
	if n := len(reg.Requests(http.MethodGet, image.Layers[0].Digest.String())); n != 1 {
		t.Errorf("the layer was fetched %d times", n)
	}
}

func TestCancel(t *testing.T) {
	reg := registrytest.New(t)
	image := noisy(t, reg, "a")
	reg.Break(registrytest.Fault{Match: registrytest.Blobs(image.Layers[0].Digest), Handler: registrytest.Stall(1000)})
	i, err := newPuller(newStore(t, t.TempDir())).Open(t.Context(), request(reg, "a:1"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	ctx, cancel := context.WithCancel(t.Context())
	st, err := i.Stream(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	b := make([]byte, 4000)
	if n, err := st.Read(b); n == 0 || err != nil {
		t.Fatal(n, err)
	}
	cancel()
	for err == nil {
		_, err = st.Read(b)
	}
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestADigestThatIsHereNeedsNobody(t *testing.T) {
	reg := registrytest.New(t)
	image := noisy(t, reg, "a")
	store := newStore(t, t.TempDir())
	if _, _, err := pullAll(t, newPuller(store), request(reg, "a:1")); err != nil {
		t.Fatal(err)
	}
	req := request(reg, "a@"+image.Manifest.Digest.String())
	reg.Close()
	if _, _, err := pullAll(t, newPuller(store), req); err != nil {
		t.Error(err)
	}
}
