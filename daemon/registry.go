package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"berth/base/group"
	"berth/face/registry"
)

// RegistryConfig says how a registry runs.
type RegistryConfig struct {
	Addr      string // host:port
	Dir       string // folder of the images
	LogLevel  string
	LogFormat string
	Log       io.Writer
}

// RunRegistry serves a registry until ctx is done.
func RunRegistry(ctx context.Context, c RegistryConfig) error {
	log, err := newLogger(c.Log, c.LogLevel, c.LogFormat)
	if err != nil {
		return err
	}
	handler, err := registry.Handler(ctx, c.Dir, log)
	if err != nil {
		return err
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", c.Addr)
	if err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	log.InfoContext(ctx, "registry is serving", "addr", listener.Addr().String(), "dir", c.Dir)
	g := group.New(ctx)
	g.Go("registry", func(ctx context.Context) error { return serveHTTP(ctx, listener, handler) })
	return g.Wait()
}

// serveHTTP serves until ctx is done. Requests descend from ctx, so that
// streams end with it; what else is under way gets some seconds to finish.
func serveHTTP(ctx context.Context, listener net.Listener, handler http.Handler) error {
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	stopped := make(chan struct{})
	defer context.AfterFunc(ctx, func() {
		defer close(stopped)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if server.Shutdown(grace) != nil {
			_ = server.Close()
		}
	})()
	err := server.Serve(listener)
	if errors.Is(err, http.ErrServerClosed) {
		<-stopped
		return ctx.Err()
	}
	return err
}
