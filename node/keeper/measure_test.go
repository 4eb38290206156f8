package keeper_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/node/keeper"
)

// proportional is a process's proportional share of memory, in KiB.
func proportional(t *testing.T, pid int) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); f[0] == "Pss:" {
			n, _ := strconv.Atoi(f[1])
			return n
		}
	}
	t.Fatal("no Pss")
	return 0
}

func cpuTime(t *testing.T, pid int) string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(data))[0]
}

func TestMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("measures")
	}
	eachRuntime(t, func(t *testing.T, runtime string) {
		if runtime != "crun" {
			t.Skip("one runtime is enough")
		}
		r := start(t)
		debug.FreeOSMemory()
		keeperBefore, nodeBefore := proportional(t, r.Pid()), proportional(t, os.Getpid())
		begin := time.Now()
		var wg sync.WaitGroup
		room := make(chan struct{}, 10)
		const n = 100
		for i := range n {
			c := r.container(runtime, fmt.Sprint(i), false, "sleep", "1000")
			wg.Go(func() {
				room <- struct{}{}
				r.launch(c.run(false))
				<-room
			})
		}
		wg.Wait()
		took := time.Since(begin)
		time.Sleep(1500 * time.Millisecond) // the burst's memory is given back
		debug.FreeOSMemory()
		keeper, node := proportional(t, r.Pid()), proportional(t, os.Getpid())
		cpu := cpuTime(t, r.Pid())
		time.Sleep(time.Second)
		t.Logf("%d containers in %v; PSS of keeper %d -> %d KiB, of this node %d -> %d KiB: %.1f KiB for each container (%.1f with the keeper's base); keeper's CPU ns before and after a second: %s %s; descriptors %d",
			n, took.Round(time.Millisecond), keeperBefore, keeper, nodeBefore, node,
			float64(keeper-keeperBefore+node-nodeBefore)/n, float64(keeper+node-nodeBefore)/n, cpu, cpuTime(t, r.Pid()), countFds(t, r.Pid()))
	})
}

// BenchmarkOutput is a flood of short lines to the log.
func BenchmarkOutput(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	for _, size := range []int{20, 100, 1000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			dir := b.TempDir()
			const total = 256 << 20
			b.SetBytes(total)
			line := strings.Repeat("x", size-1)
			for i := 0; b.Loop(); i++ {
				flood(b, dir, fmt.Sprintf("b%d", i), fmt.Sprintf("yes %s | head -c %d", line, total))
			}
		})
	}
}

// BenchmarkLaunch is a container from its start to its end, and the same by
// the runtime alone.
func BenchmarkLaunch(b *testing.B) {
	if _, err := exec.LookPath("crun"); err != nil || os.Geteuid() != 0 {
		b.Skip("needs root and crun")
	}
	r := start(b)
	c := r.container("crun", "a", false, "echo", "hello")
	b.Run("keeper", func(b *testing.B) {
		for b.Loop() {
			r.launch(c.run(false))
			r.wait(c.id)
			_ = r.Forget(b.Context(), c.id)
			r.mu.Lock()
			delete(r.exits, c.id)
			r.mu.Unlock()
			b.StopTimer()
			_ = exec.Command("crun", "delete", "-f", c.id).Run()
			b.StartTimer()
		}
	})
	b.Run("alone", func(b *testing.B) {
		for b.Loop() {
			if out, err := exec.Command("crun", "run", "--bundle", c.bundle, c.id).CombinedOutput(); err != nil {
				b.Fatalf("%v %s", err, out)
			}
		}
	})
}

func flood(b *testing.B, dir, id, script string) {
	b.Helper()
	exits := make(chan keeper.Exit, 1)
	k, err := keeper.Open(b.Context(), keeper.Config{
		Socket: dir + "/keeper.sock", PidFile: dir + "/keeper.pid", Command: command(dir),
		Exited: func(e keeper.Exit) { exits <- e }, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	r := &rig{dir: dir}
	l := r.script(id, script)
	l.Log.MaxSize, l.Log.MaxFiles = 16<<20, 2
	if _, err := k.Launch(b.Context(), l); err != nil {
		b.Fatal(err)
	}
	<-exits
	if err := k.Shutdown(b.Context(), true); err != nil {
		b.Error(err)
	}
	cancel()
	<-done
	_ = k.Close()
	logs, _ := filepath.Glob(filepath.Join(dir, id+".log*"))
	for _, name := range logs {
		_ = os.Remove(name)
	}
}
