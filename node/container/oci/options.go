package oci

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/api/types/runc/options"
	"google.golang.org/protobuf/proto"

	"berth/base/errs"
	"berth/node/container"
)

// optionsType is the message of options that clients of containerd send.
const optionsType = "containerd.runc.v1.Options"

// chosen reads what a client wants of the runtime. All that cannot be done is
// refused: a container without what was asked for may be less confined.
func (r *Runtime) chosen(l container.Launch) (c choice, err error) {
	c.restore = l.Restore
	// Hooks look a container up by the id that the program tells them, which is
	// unique within its namespace only.
	if l.Namespace != "" && l.ID == l.Namespace+"+"+l.Name {
		c.ID, c.Space = l.Name, l.Namespace
	}
	if l.Options == nil || l.Options.Type == "" && len(l.Options.Value) == 0 {
		return c, nil
	}
	if name := l.Options.Type[strings.LastIndexByte(l.Options.Type, '/')+1:]; name != optionsType {
		return c, errs.New(errs.Invalid, "runtime %s: options of type %q, not %s", r.name, l.Options.Type, optionsType)
	}
	var o options.Options
	if err := proto.Unmarshal(l.Options.Value, &o); err != nil {
		return c, errs.New(errs.Invalid, "runtime %s: options: %w", r.name, err)
	}
	if len(o.ProtoReflect().GetUnknown()) > 0 {
		return c, errs.New(errs.Unsupported, "runtime %s: options that nobody knows", r.name)
	}
	switch {
	case o.GetShimCgroup() != "":
		return c, errs.New(errs.Unsupported, "runtime %s: there is no shim to be put into cgroup %s", r.name, o.GetShimCgroup())
	case o.GetTaskApiAddress() != "": //nolint:staticcheck // clients may still send it
		return c, errs.New(errs.Unsupported, "runtime %s: it has no task service of its own", r.name)
	case o.GetSystemdCgroup() && !systemdRuns():
		return c, errs.New(errs.Unsupported, "runtime %s: systemd, which shall make the cgroup, does not run here", r.name)
	case o.GetRoot() != "" && !filepath.IsAbs(o.GetRoot()):
		return c, errs.New(errs.Invalid, "runtime %s: root %q does not begin with a slash", r.name, o.GetRoot())
	}
	if c.Program = o.GetBinaryName(); c.Program == r.name || c.Program == r.usual.path {
		c.Program = ""
	}
	if o.GetRoot() != "" { // where people look for the records with the program itself
		c.Root = filepath.Join(o.GetRoot(), l.Namespace)
	}
	if c.restore == "" {
		c.restore = o.GetCriuImagePath()
	}
	c.Systemd, c.UID, c.GID = o.GetSystemdCgroup(), int(o.GetIoUid()), int(o.GetIoGid())
	c.noPivot, c.noKeyring, c.work = o.GetNoPivotRoot(), o.GetNoNewKeyring(), o.GetCriuWorkPath()
	return c, nil
}

func systemdRuns() bool {
	info, err := os.Lstat("/run/systemd/system")
	return err == nil && info.IsDir()
}
