package container_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"berth/base/errs"
	"berth/node/container"
	"berth/node/snapshot"
)

// BenchmarkPodContainer is a pod's container from its snapshot on until it is
// gone, by steps, with the time that all processes had on a processor.
func BenchmarkPodContainer(b *testing.B) {
	for _, program := range []string{"crun", "runc"} {
		b.Run(program, func(b *testing.B) {
			r := newReal(b, program)
			zero := 0
			var mount, admit, run, stop, remove time.Duration
			before := r.processorTime()
			i := 0
			for b.Loop() {
				i++
				g := r.realPod(fmt.Sprint("c", i), false, "/bin/sleep", "1000")
				g.SnapshotKey = "client/bench"
				r.mu.Lock()
				r.snapshots["client/bench"] = true
				r.mu.Unlock()
				took := func(d *time.Duration, fn func() error) {
					began := time.Now()
					r.ok(fn())
					*d += time.Since(began)
				}
				took(&mount, func() error {
					_, err := r.node.MountRoot(b.Context(), pods, g.ID, snapshot.Key(g.SnapshotKey))
					return err
				})
				took(&admit, func() error { _, err := r.node.AdmitGiven(b.Context(), g); return err })
				took(&run, func() error {
					_, err := r.node.RunTask(b.Context(), pods, g.ID, container.TaskRequest{})
					return err
				})
				took(&stop, func() error { return r.node.Stop(b.Context(), g.ID, &zero, "") })
				took(&remove, func() error {
					if err := r.node.Remove(b.Context(), g.ID, true, false); errs.KindOf(err) != errs.NotFound {
						return err
					}
					return nil
				})
			}
			for name, d := range map[string]time.Duration{"mount": mount, "admit": admit, "run": run, "stop": stop, "remove": remove} {
				b.ReportMetric(float64(d.Microseconds())/float64(i)/1000, name+"-ms/op")
			}
			b.ReportMetric(float64((r.processorTime()-before).Microseconds())/float64(i)/1000, "cpu-ms/op")
		})
	}
}

// processorTime is what this process, the keeper and all that they have waited
// for have had.
func (r *real) processorTime() (sum time.Duration) {
	for _, pid := range []int{os.Getpid(), r.keeper.Pid()} {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		r.ok(err)
		_, rest, _ := strings.Cut(string(data), ") ")
		for _, field := range strings.Fields(rest)[11:15] { // utime stime cutime cstime
			ticks, err := strconv.Atoi(field)
			r.ok(err)
			sum += time.Duration(ticks) * 10 * time.Millisecond
		}
	}
	return sum
}

// BenchmarkReturn is how long a node takes that finds a hundred containers of
// pods.
func BenchmarkReturn(b *testing.B) {
	r := newReal(b, "crun")
	for i := range 100 {
		r.runs(r.realPod(fmt.Sprint("c", i), false, "/bin/sleep", "1000"))
	}
	for b.Loop() {
		b.StopTimer()
		r.stop()
		b.StartTimer()
		r.open()
	}
}
