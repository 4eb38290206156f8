package oci_test

import (
	"context"
	"testing"

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
			b.ResetTimer()
			for _, l := range launches {
				bench.run(l)
				bench.keeper.exit(l.ID)
				if err := bench.runtime.Delete(context.Background(), l.ID); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
		})
	}
}
