// Command store drives one of Berth's snapshot drivers for the benchmarks, in
// its own process: it reads requests from standard input, one JSON object a
// line, and answers each with what it took. The program peer does the same
// with containerd's snapshotter, so that one loop measures both.
package main

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"syscall"
	"time"

	"berth/base/kv"
	"berth/node/snapshot"
	"berth/node/snapshot/lcfs"
	"berth/node/snapshot/overlay"
)

// request asks for one call of the store. Layer reads the file Path, a
// gzipped tar, as the layer Key on Parent.
type request struct {
	Verb   string `json:"verb"`
	Key    string `json:"key"`
	Parent string `json:"parent"`
	Path   string `json:"path"`

	Volatile bool `json:"volatile"` // without the syncs of overlayfs
}

// reply is what the call took by the clock, in nanoseconds.
type reply struct {
	Took  int64  `json:"took"`
	Error string `json:"error,omitempty"`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "store:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, in io.Reader, out, logs io.Writer) (err error) {
	flags := flag.NewFlagSet("store", flag.ContinueOnError)
	driver := flags.String("driver", "lcfs", "the driver to measure")
	dir := flags.String("dir", "", "folder of the store")
	profile := flags.String("cpuprofile", "", "file for a profile of the whole run")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *profile != "" {
		file, err := os.Create(*profile)
		if err != nil {
			return err
		}
		defer file.Close()
		if err := pprof.StartCPUProfile(file); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	if err := os.MkdirAll(*dir, 0o700); err != nil {
		return err
	}
	db, err := kv.Open(filepath.Join(*dir, "db"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	store, err := open(ctx, *driver, *dir, db, slog.New(slog.NewTextHandler(logs, &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	return serve(ctx, store, in, out)
}

func open(ctx context.Context, driver, dir string, db *kv.DB, log *slog.Logger) (snapshot.Store, error) {
	switch driver {
	case "lcfs":
		return lcfs.Open(ctx, lcfs.Config{Dir: dir, DB: db, Log: log})
	case "overlay":
		return overlay.Open(ctx, overlay.Config{Dir: dir, DB: db, Log: log})
	default:
		return nil, fmt.Errorf("no driver %q", driver)
	}
}

// serve answers requests until there are no more.
func serve(ctx context.Context, store snapshot.Store, in io.Reader, out io.Writer) error {
	lines, answers := bufio.NewScanner(in), json.NewEncoder(out)
	for lines.Scan() {
		var q request
		if err := json.Unmarshal(lines.Bytes(), &q); err != nil {
			return err
		}
		began := time.Now()
		err := call(ctx, store, q)
		answer := reply{Took: time.Since(began).Nanoseconds()}
		if err != nil {
			answer.Error = err.Error()
		}
		if err := answers.Encode(answer); err != nil {
			return err
		}
	}
	return lines.Err()
}

func call(ctx context.Context, store snapshot.Store, q request) (err error) {
	key, parent := snapshot.Key(q.Key), snapshot.Key(q.Parent)
	switch q.Verb {
	case "prepare":
		var labels map[string]string
		if q.Volatile {
			labels = map[string]string{snapshot.Volatile: "yes"}
		}
		_, err = store.Prepare(ctx, key, parent, labels)
	case "view":
		_, err = store.View(ctx, key, parent, nil)
	case "mount":
		err = store.Mount(ctx, key, q.Path)
	case "unmount":
		err = store.Unmount(ctx, q.Path)
	case "commit":
		_, err = store.Commit(ctx, key, parent, nil)
	case "sync":
		err = store.Sync(ctx)
	case "settle":
		err = settle(ctx, store, key)
	case "remove":
		err = store.Remove(ctx, key)
	case "layer":
		err = layer(ctx, store, key, parent, q.Path)
	default:
		err = fmt.Errorf("no verb %q", q.Verb)
	}
	return err
}

func layer(ctx context.Context, store snapshot.Store, key, parent snapshot.Key, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	plain, err := gzip.NewReader(bufio.NewReaderSize(file, 1<<20))
	if err != nil {
		return err
	}
	ingest, err := store.Ingest(ctx, plain)
	if err != nil {
		return err
	}
	if _, err := ingest.Commit(ctx, key, parent, nil); err != nil {
		return errors.Join(err, ingest.Abort(ctx))
	}
	return nil
}

// settler makes one tree of a chain, as the end of a pull does.
type settler interface {
	Settle(ctx context.Context, key snapshot.Key) error
}

func settle(ctx context.Context, store snapshot.Store, key snapshot.Key) error {
	if s, ok := store.(settler); ok {
		return s.Settle(ctx, key)
	}
	return nil
}
