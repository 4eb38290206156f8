package oci_test

import (
	"context"
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
