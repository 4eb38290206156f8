// Actor plays the programs in the images that critest runs, each by the name it
// is started by: nginx and httpd, which answer on a port; nonewprivs, which says
// as whom it runs; pause, which waits and reaps.
package main

import (
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

func main() {
	switch name := filepath.Base(os.Args[0]); name {
	case "nonewprivs":
		fmt.Fprintf(os.Stdout, "Effective uid: %d\n", os.Geteuid())
	case "pause":
		pause()
	default:
		fmt.Fprintln(os.Stderr, serve(name))
		os.Exit(1)
	}
}

// serve answers on PORT, or 80, until it is killed.
func serve(name string) error {
	port := os.Getenv("PORT")
	if port == "" {
		port = "80"
	}
	if err := os.MkdirAll("/var/run", 0o755); err != nil {
		return err
	}
	if err := os.WriteFile("/var/run/nginx.pid", []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil {
		return err
	}
	fmt.Fprintf(os.Stdout, "httpd: %s answers on port %s\n", name, port)
	server := http.Server{Addr: ":" + port, ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "It works!")
	})}
	return server.ListenAndServe()
}

// pause waits for a signal to end by, and takes the exit codes of children that
// lost their parent.
func pause() {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for s := range signals {
		if s != syscall.SIGCHLD {
			return
		}
		for pid := 1; pid > 0; {
			pid, _ = syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		}
	}
}
