package main

import (
	"context"
	"net"
	"net/http"
	"os"
	"path"
	"strings"
	"sync"
	"time"
)

// shelfServer is a registry, for reading only, of what lies on a shelf. It
// runs in the bench's own process and serves both sides the same way.
type shelfServer struct {
	http    *http.Server
	serving sync.WaitGroup
	addr    string
}

func (s shelf) serve(ctx context.Context) (*shelfServer, error) {
	var listen net.ListenConfig
	l, err := listen.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	server := &shelfServer{http: &http.Server{Handler: s, ReadHeaderTimeout: time.Minute}, addr: l.Addr().String()}
	server.serving.Go(func() { _ = server.http.Serve(l) }) // ends with close
	return server, nil
}

func (s *shelfServer) close() error {
	err := s.http.Close()
	s.serving.Wait()
	return err
}

func (s *shelfServer) ref(tag string) string { return s.addr + "/" + layeredName + ":" + tag }

// ServeHTTP answers /v2/, …/manifests/<tag or digest> and …/blobs/<digest>.
func (s shelf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	above, name := path.Split(r.URL.Path)
	file := ""
	switch kind := path.Base(above); {
	case r.URL.Path == "/v2/":
		w.WriteHeader(http.StatusOK)
		return
	case strings.ContainsAny(name, "/\\") || name == "" || name == "..":
	case strings.HasPrefix(name, "sha256:") && (kind == "blobs" || kind == "manifests"):
		file = s.blob(name)
	case kind == "manifests":
		file = s.manifest(name)
	}
	content, err := os.Open(file)
	if err != nil {
		http.NotFound(w, r)
		return
	}
	defer content.Close()
	header := w.Header()
	header.Set("Content-Type", "application/octet-stream")
	if path.Base(above) == "manifests" {
		data, err := os.ReadFile(file)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		name = digest(data)
		header.Set("Content-Type", manifestType)
	}
	header.Set("Docker-Content-Digest", name)
	http.ServeContent(w, r, "", time.Time{}, content)
}
