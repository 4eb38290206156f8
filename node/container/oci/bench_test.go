package oci_test

import (
	"context"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"berth/node/container"
)

// BenchmarkRun is the life of /bin/true: run, exit, delete.
func BenchmarkRun(b *testing.B) {
	for _, name := range []string{"crun", "runc"} {
		b.Run(name, func(b *testing.B) {
			bench := newBench(b, name)
			launches := make([]container.Launch, 0, b.N)
			for range b.N {
				launches = append(launches, bench.make(command("true")))
			}
			var run, exit, remove time.Duration
			b.ResetTimer()
			for _, l := range launches {
				begin := time.Now()
				bench.run(l)
				started := time.Now()
				bench.keeper.exit(l.ID)
				ended := time.Now()
				if err := bench.runtime.Delete(context.Background(), l.ID); err != nil {
					b.Fatal(err)
				}
				run, exit, remove = run+started.Sub(begin), exit+ended.Sub(started), remove+time.Since(ended)
			}
			b.StopTimer()
			for unit, d := range map[string]time.Duration{"run-ms": run, "exit-ms": exit, "delete-ms": remove} {
				b.ReportMetric(d.Seconds()*1000/float64(b.N), unit)
			}
		})
	}
}

// BenchmarkGiven is the life of /bin/true in two steps with the real keeper and
// a client's streams, beside what the program alone takes for the first.
func BenchmarkGiven(b *testing.B) {
	for _, name := range []string{"crun", "runc"} {
		b.Run(name, func(b *testing.B) {
			k := newKept(b, name, func(container.Exit) {})
			var launches []container.Launch
			for range b.N {
				l := k.make(command("true"))
				l.Streams = &container.Streams{}
				launches = append(launches, l)
			}
			alone := k.make(command("true"))
			path := filepath.Join(b.TempDir(), "pid")
			steps := map[string]time.Duration{}
			step := func(what string, do func() error) {
				begin := time.Now()
				if err := do(); err != nil {
					b.Fatalf("%s: %v", what, err)
				}
				steps[what] += time.Since(begin)
			}
			b.ResetTimer()
			for _, l := range launches {
				step("create", func() error { _, err := k.runtime.Create(b.Context(), l); return err })
				step("start", func() error { return k.runtime.Start(b.Context(), l.ID) })
				step("exit", func() error { k.wait(l.ID); return nil })
				step("delete", func() error { return k.runtime.Delete(b.Context(), l.ID) })
				step("alone", func() error {
					return exec.Command(name, "create", "--bundle", alone.Bundle, "--pid-file", path, alone.ID).Run()
				})
				if err := exec.Command(name, "delete", "--force", alone.ID).Run(); err != nil {
					b.Fatal(err)
				}
			}
			for what, d := range steps {
				b.ReportMetric(d.Seconds()*1000/float64(b.N), what+"-ms")
			}
		})
	}
}
