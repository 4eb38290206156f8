// Command bench measures Berth against containerd in one run on one machine:
// the same OCI runtime, the same file system (ext4 on a loop device), blocks
// of the one and the other in turn. It prints one table; what it made is gone
// when it ends, also when it is interrupted.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"
)

// settings are what the command line says.
type settings struct {
	peerDir, berth, runtime string
	first, big              string // image archives; made where they are missing
	rows                    *regexp.Regexp
	sides                   *regexp.Regexp
	once, bursts, restarts  int
	containers, atOnce      int
	lists, pulls, builds    int
	clients                 string // folder of nerdctl and BuildKit
	keepLogs                string
	shelf, driver, profile  string // of the storage rows
	podRuntime              string // OCI runtime of pods
	podRounds               int
	soak                    time.Duration
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out, progress io.Writer) (err error) {
	var s settings
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(progress)
	flags.StringVar(&s.peerDir, "peer", ".cache/peer", "folder of containerd, its shim, ctr and peer")
	flags.StringVar(&s.berth, "berth", "bin/berth", "the program to measure")
	flags.StringVar(&s.runtime, "runtime", "crun", "OCI runtime of both")
	flags.StringVar(&s.first, "first", ".cache/bench/busybox.tar", "small image; made by test/first-image.sh where missing")
	flags.StringVar(&s.big, "big", ".cache/bench/big.tar", "image to pull; made where missing")
	rows := flags.String("run", "", "only the rows that match: once, burst, memory, list, stats, restart, idle, pull, door, storage, cri (of which cri-idle, cri-start, cri-fifty, cri-event, cri-log, cri-many); and soak, which none else brings")
	sides := flags.String("sides", "", "only the sides that match: containerd, berth")
	flags.IntVar(&s.once, "n", 40, "containers from create to removed, on each side")
	flags.IntVar(&s.bursts, "bursts", 5, "bursts on each side")
	flags.IntVar(&s.containers, "containers", 100, "containers of a burst")
	flags.IntVar(&s.atOnce, "at-once", 10, "of these at a time")
	flags.IntVar(&s.lists, "lists", 20, "lists and statistics in each burst")
	flags.IntVar(&s.restarts, "restarts", 2, "kills of the daemon in each burst")
	flags.IntVar(&s.pulls, "pulls", 5, "pulls of each kind")
	flags.IntVar(&s.builds, "builds", 5, "builds by nerdctl")
	flags.StringVar(&s.clients, "clients", ".cache/clients/bin", "folder of nerdctl, buildkitd and buildctl")
	flags.StringVar(&s.keepLogs, "logs", "", "folder that the daemons' logs are kept in")
	flags.StringVar(&s.shelf, "shelf", shelfDir(), "folder of images of many layers; made where missing")
	flags.StringVar(&s.driver, "driver", "lcfs", "snapshot driver that the storage rows drive in process")
	flags.StringVar(&s.profile, "cpuprofile", "", "file for a CPU profile of that driver")
	flags.StringVar(&s.podRuntime, "pod-runtime", ".cache/cri/runc", "OCI runtime of pods, on all sides")
	flags.IntVar(&s.podRounds, "pod-rounds", 3, "rounds of 10 pods one by one and 50 pods 5 at a time")
	flags.DurationVar(&s.soak, "soak", 2*time.Minute, "how long pods come and go in the row soak")
	asJSON := flags.String("json", "", "file for all samples, as JSON")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if s.podRuntime, err = filepath.Abs(s.podRuntime); err != nil {
		return err
	}
	if s.rows, err = regexp.Compile(*rows); err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	if s.sides, err = regexp.Compile(*sides); err != nil {
		return fmt.Errorf("-sides: %w", err)
	}

	b, err := prepare(ctx, s, slog.New(slog.NewTextHandler(progress, nil)))
	if err != nil {
		return err
	}
	defer b.close(ctx, &err)
	before := machine(ctx, s)
	if err := b.measure(ctx); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s\n\n%s%s%s", before, b.results.table(b.results.lines(s.pulls)),
		b.results.table(b.results.doorLines(s.builds)), b.results.table(b.results.storageLines(s.pulls))+b.results.podTable())
	if *asJSON == "" {
		return nil
	}
	data, err := json.MarshalIndent(b.results, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(*asJSON, append(data, '\n'), 0o644)
}
