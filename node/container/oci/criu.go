package oci

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/thread"
)

// criuConfig is the annotation of a spec that says which file CRIU is
// configured by; without it runtimes take one of the machine's.
const criuConfig = "org.criu.config"

// joining is what a restored container joins. Runtimes have CRIU restore into
// the network and PID namespaces that a spec names; it would make new ones in
// place of all others.
type joining struct {
	file, usual string    // CRIU's configuration, and what would be in it anyway
	uts         string    // path of the namespace; "" for one of its own
	host        [2]string // names of the machine in it
}

// join has a container that is about to be restored from a bundle join the
// namespaces that the spec names. Connections it had are closed to it: at the
// other end nobody knows it any more.
func (c *config) join(p *program) (*joining, error) {
	if p.foreign { // it has no CRIU
		return nil, nil //nolint:nilnil // there is nothing to join
	}
	j := &joining{file: filepath.Join(filepath.Dir(c.file), "criu.conf")}
	annotations := map[string]string{}
	if raw := c.fields["annotations"]; raw != nil {
		if err := json.Unmarshal(raw, &annotations); err != nil {
			return nil, errs.New(errs.Invalid, "bundle: annotations: %w", err)
		}
	}
	var namespaces []specs.LinuxNamespace
	if raw := c.linux["namespaces"]; raw != nil {
		if err := json.Unmarshal(raw, &namespaces); err != nil {
			return nil, errs.New(errs.Invalid, "bundle: namespaces: %w", err)
		}
	}
	usual, err := os.ReadFile(cmp.Or(annotations[criuConfig], "/etc/criu/"+criuName(p.name)+".conf"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("configuration of CRIU: %w", err)
	}
	j.usual = string(usual)
	lines := []string{j.usual, "tcp-close"}
	for _, ns := range namespaces {
		if ns.Path != "" && (ns.Type == specs.IPCNamespace || ns.Type == specs.UTSNamespace) {
			lines = append(lines, "join-ns "+string(ns.Type)+":"+ns.Path)
		}
		if ns.Path != "" && ns.Type == specs.UTSNamespace {
			j.uts = ns.Path
		}
	}
	annotations[criuConfig] = j.file
	data, err := json.Marshal(annotations)
	if err != nil {
		return nil, err
	}
	c.fields["annotations"], c.changed = data, true
	if j.uts != "" {
		if err := j.within(j.readNames); err != nil {
			return nil, fmt.Errorf("names of the machine: %w", err)
		}
	}
	return j, errors.Join(os.WriteFile(j.file, []byte(strings.Join(lines, "\n")+"\n"), 0o600), c.write())
}

// criuName is whose configuration of CRIU a program reads.
func criuName(program string) string {
	if strings.Contains(program, "crun") {
		return "crun"
	}
	return "runc"
}

// settle takes back what is only for the restore: CRIU has put the names of the
// machine, as they were, into the namespace that it joined.
func (j *joining) settle() error {
	if j == nil {
		return nil
	}
	err := os.WriteFile(j.file, []byte(j.usual), 0o600) // a later checkpoint reads it
	if j.uts != "" {
		err = errors.Join(err, j.within(func() error {
			return errors.Join(unix.Sethostname([]byte(j.host[0])), unix.Setdomainname([]byte(j.host[1])))
		}))
	}
	return err
}

func (j *joining) readNames() error {
	var names unix.Utsname
	err := unix.Uname(&names)
	j.host = [2]string{unix.ByteSliceToString(names.Nodename[:]), unix.ByteSliceToString(names.Domainname[:])}
	return err
}

// within runs fn in the UTS namespace.
func (j *joining) within(fn func() error) error {
	ns, err := os.Open(j.uts)
	if err != nil {
		return err
	}
	defer ns.Close()
	return thread.Own(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWUTS); err != nil {
			return err
		}
		return fn()
	})
}

var lacking = regexp.MustCompile(`execvp\("([^"]+)", \.\.\.\) failed: No such file`)

// criuFailure reads CRIU's log: which program it lacked, if any, and else its
// last errors, at most three.
func criuFailure(log string) (lacks, said string) {
	data, err := os.ReadFile(log)
	if err != nil {
		return "", ""
	}
	if found := lacking.FindSubmatch(data); found != nil {
		return string(found[1]), ""
	}
	var all []string
	for line := range bytes.Lines(data) {
		// util.c says that some program has ended, which is none by itself.
		if i := bytes.Index(line, []byte("Error (")); i >= 0 && !bytes.Contains(line, []byte("(criu/util.c:")) {
			all = append(all, strings.TrimSpace(string(line[i:])))
		}
	}
	return "", strings.Join(all[max(0, len(all)-3):], "; ")
}
