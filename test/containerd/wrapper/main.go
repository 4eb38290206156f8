// Command containerd stands where containerd's own integration tests want a
// program of that name: it takes the flags and the few commands that they use,
// and becomes berth node. Settings of containerd's configuration file have no
// counterpart and are not read.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
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
	if flags.Arg(0) == "oci-hook" {
		return hook(flags.Args()[1:])
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

// hook becomes the program that its arguments name, with what an OCI runtime
// says of the container to its hooks put in their places.
func hook(args []string) error {
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		return errors.New("usage: containerd oci-hook -- program [arguments]")
	}
	var state struct {
		ID     string `json:"id"`
		Pid    int    `json:"pid"`
		Bundle string `json:"bundle"`
	}
	if err := json.NewDecoder(os.Stdin).Decode(&state); err != nil {
		return fmt.Errorf("state of the container: %w", err)
	}
	known := strings.NewReplacer("{{id}}", state.ID, "{{pid}}", strconv.Itoa(state.Pid), "{{bundle}}", state.Bundle)
	for i := range args {
		args[i] = known.Replace(args[i])
	}
	program, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	return syscall.Exec(program, args, os.Environ())
}
