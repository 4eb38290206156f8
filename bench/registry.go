package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"berth/client"
	"berth/spec"
)

// registry is a `berth registry` on loopback, which serves both sides.
type registry struct {
	daemon
	settings settings
	place    *place
	addr     string
	ref      string // of the large image in it
}

func newRegistry(ctx context.Context, p *place, s settings) (*registry, error) {
	program, err := filepath.Abs(s.berth)
	if err != nil {
		return nil, err
	}
	var listen net.ListenConfig
	l, err := listen.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		return nil, err
	}
	r := &registry{
		settings: s, place: p, addr: addr, ref: addr + "/" + bigName,
		daemon: daemon{
			argv: []string{program, "registry", "--addr", addr, "--dir", filepath.Join(p.dir, "registry"), "--log-level", "warn"},
			log:  filepath.Join(p.dir, "registry.log"),
		},
	}
	if err := r.start(); err != nil {
		return nil, err
	}
	var dialer net.Dialer
	err = r.poll(ctx, "the registry", func(ctx context.Context) error {
		conn, err := dialer.DialContext(ctx, "tcp", addr)
		if err == nil {
			err = conn.Close()
		}
		return err
	})
	if err != nil {
		r.kill()
		return nil, err
	}
	return r, nil
}

// fill pushes the image of the archive, by a node that is gone afterwards.
func (r *registry) fill(ctx context.Context, archive string) error {
	n := &berth{program: r.argv[0], socket: r.place.run("filler.sock"), root: r.place.disk("filler"), state: r.place.run("filler")}
	n.Client = client.New(n.socket)
	n.daemon = daemon{
		argv: []string{n.program, "node", "--root", n.root, "--state", n.state, "--socket", n.socket, "--log-level", "warn"},
		log:  filepath.Join(r.place.dir, "filler.log"),
	}
	if err := n.start(); err != nil {
		return err
	}
	defer n.close(context.WithoutCancel(ctx))
	if err := n.poll(ctx, "a node to push from", n.Ping); err != nil {
		return err
	}
	content, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer content.Close()
	images, err := n.ImageLoad(ctx, content, nil)
	if err != nil {
		return err
	}
	if len(images) != 1 {
		return fmt.Errorf("%s holds %d images", archive, len(images))
	}
	if err := n.ImageTag(ctx, images[0].ID, r.ref); err != nil {
		return err
	}
	if err := n.ImagePush(ctx, spec.PushRequest{Reference: r.ref}, nil); err != nil {
		return err
	}
	n.close(context.WithoutCancel(ctx))
	return os.RemoveAll(n.root)
}
