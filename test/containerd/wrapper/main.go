// Command containerd stands where containerd's own integration tests want a
// program of that name: it takes the flags and the few commands that they use,
// and becomes berth node. Settings of containerd's configuration file have no
// counterpart and are not read.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "containerd:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("containerd", flag.ContinueOnError)
	var config, root, state, address, level string
	flags.StringVar(&config, "config", "", "a configuration file of containerd")
	flags.StringVar(&config, "c", "", "the same")
	flags.StringVar(&root, "root", "/var/lib/containerd", "folder that lasts")
	flags.StringVar(&state, "state", "/run/containerd", "folder that lasts until the next boot")
	flags.StringVar(&address, "address", "/run/containerd/containerd.sock", "socket to serve on")
	flags.StringVar(&address, "a", "/run/containerd/containerd.sock", "the same")
	flags.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	flags.StringVar(&level, "l", "info", "the same")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch flags.Arg(0) + " " + flags.Arg(1) {
	case "config default":
		_, err := fmt.Fprintln(out, "version = 3")
		return err
	case "config migrate":
		text, err := os.ReadFile(config)
		if err == nil {
			_, err = out.Write(text)
		}
		return err
	case " ":
	default:
		return fmt.Errorf("there is no %q", flags.Args())
	}
	berth, err := exec.LookPath("berth")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(address), 0o711); err != nil {
		return err
	}
	argv := []string{"berth", "node", "--root", root, "--state", state, "--socket", address, "--log-level", level}
	return syscall.Exec(berth, argv, os.Environ())
}
