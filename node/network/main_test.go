package network

import (
	"os"
	"testing"

	own "berth/test/machine"
)

func TestMain(m *testing.M) { os.Exit(own.Run(m, own.Empty)) }
