package rootfs_test

import (
	"os"
	"testing"

	"berth/test/machine"
)

func TestMain(m *testing.M) { os.Exit(machine.Run(m, machine.Empty)) }
