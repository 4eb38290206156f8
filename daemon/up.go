package daemon

import (
	"context"
	"fmt"
	"io"
)

// UpConfig says how Berth comes up on one machine.
type UpConfig struct {
	Node NodeConfig
	Out  io.Writer // told what was done and what to try next
}

// RunUp runs a node with embedded defaults and says what it does.
func RunUp(ctx context.Context, c UpConfig) error {
	c.Node.Ready = func(n Readiness) {
		fmt.Fprintf(c.Out, `Berth is up.
  durable state   %s
  until reboot    %s
  socket          %s
  snapshots       %s
  runtime         %s
  keeper          pid %d, parent of all containers: they go on when Berth is restarted

No file was written outside these folders. Try next, in another terminal:
  berth pull alpine
  berth run -it --rm alpine
  berth info
`, n.Root, n.State, n.Socket, n.Snapshotter, n.Runtime, n.KeeperPid)
	}
	return RunNode(ctx, c.Node)
}
