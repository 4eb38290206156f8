package bundle

import (
	"errors"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"berth/base/errs"
	"berth/spec"
)

// addPodDevices fills in the devices: those of the host for the privileged,
// else those asked for, one by one or by folder; then those of CDI.
func addPodDevices(s *specs.Spec, in PodInput) error {
	c := in.Container.Config
	limits := s.Linux.Resources
	limits.Devices = []specs.LinuxDeviceCgroup{{Allow: c.Security.Privileged, Access: "rwm"}}
	if c.Security.Privileged {
		all, err := hostDevices("/dev", "/dev")
		if err != nil {
			return err
		}
		s.Linux.Devices = all
	}
	for _, d := range c.Devices {
		found, rules, err := devices(spec.Device{Path: d.Host, Target: d.Container, Permissions: d.Permissions})
		if err != nil {
			return err
		}
		s.Linux.Devices = slices.DeleteFunc(s.Linux.Devices, func(have specs.LinuxDevice) bool {
			return slices.ContainsFunc(found, func(d specs.LinuxDevice) bool { return d.Path == have.Path })
		})
		s.Linux.Devices = append(s.Linux.Devices, found...)
		if !c.Security.Privileged {
			limits.Devices = append(limits.Devices, rules...)
		}
	}
	return injectDevices(s, in)
}

// injectDevices are those of CDI, named by the client's own field and, as
// older device plugins have it, by annotations.
func injectDevices(s *specs.Spec, in PodInput) error {
	_, annotated, err := cdi.ParseAnnotations(in.Container.Config.Annotations)
	if err != nil {
		return errs.New(errs.Invalid, "devices by annotation: %w", err)
	}
	names := unique(slices.Concat(in.Container.Config.CDI, annotated))
	switch {
	case len(names) == 0:
		return nil
	case in.Devices == nil:
		return errs.New(errs.Unsupported, "devices %q: this node has no registry of CDI devices", names)
	}
	return in.Devices.Inject(s, names)
}

// Devices are the CDI devices that files in some folders describe.
type Devices struct{ cache *cdi.Cache }

// OpenDevices reads them from dirs, where later ones go before; none stands
// for /etc/cdi and /var/run/cdi. The files are read anew for each injection.
func OpenDevices(dirs ...string) (*Devices, error) {
	options := []cdi.Option{cdi.WithAutoRefresh(false)}
	if len(dirs) > 0 {
		options = append(options, cdi.WithSpecDirs(dirs...))
	}
	cache, err := cdi.NewCache(options...)
	if err != nil {
		return nil, errs.New(errs.Internal, "CDI: %w", err)
	}
	return &Devices{cache}, nil
}

// Inject implements CDI. A device that no file describes is errs.Invalid.
func (d *Devices) Inject(s *specs.Spec, names []string) error {
	// What is wrong with a file concerns only who needs a device of it.
	problems := d.cache.Refresh()
	if missing, err := d.cache.InjectDevices(s, names...); err != nil {
		if len(missing) > 0 {
			return errs.New(errs.Invalid, "CDI devices %q: %w", missing, errors.Join(err, problems))
		}
		return errs.New(errs.Invalid, "CDI devices %q: %w", names, err)
	}
	return nil
}
