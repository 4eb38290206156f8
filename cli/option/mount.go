package option

import (
	"encoding/csv"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"

	"berth/base/errs"
	"berth/spec"
)

var volumeName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

var propagations = []string{"private", "rprivate", "shared", "rshared", "slave", "rslave"}

// Volume reads the value of -v: [source:]target[:modes]. Sources that begin
// with a dot are taken from the folder dir.
func Volume(text, dir string) (spec.MountPoint, error) {
	parts := strings.Split(text, ":")
	var source, target, modes string
	switch len(parts) {
	case 1:
		target = parts[0]
	case 2:
		source, target = parts[0], parts[1]
	case 3:
		source, target, modes = parts[0], parts[1], parts[2]
	default:
		return spec.MountPoint{}, errs.New(errs.Invalid, "volume %q: expected [source:]target[:modes]", text)
	}
	mount, err := volume(source, target, dir, len(parts) > 1)
	if err == nil {
		err = volumeModes(&mount, modes)
	}
	if err != nil {
		return spec.MountPoint{}, errs.New(errs.Invalid, "volume %q: %w", text, err)
	}
	return mount, nil
}

func volume(source, target, dir string, hasSource bool) (spec.MountPoint, error) {
	clean, err := mountTarget(target)
	if err != nil {
		return spec.MountPoint{}, err
	}
	switch {
	case !hasSource:
		return spec.MountPoint{Type: "volume", Target: clean, Anonymous: true}, nil
	case source == "":
		return spec.MountPoint{}, errs.New(errs.Invalid, "the source is empty")
	case isPath(source):
		return spec.MountPoint{Type: "bind", Source: hostPath(source, dir), Target: clean, CreateHost: true}, nil
	case volumeName.MatchString(source):
		return spec.MountPoint{Type: "volume", Source: source, Target: clean}, nil
	}
	return spec.MountPoint{}, errs.New(errs.Invalid, "%q is neither a volume's name nor a path; paths begin with / or ./", source)
}

func mountTarget(target string) (string, error) {
	if !path.IsAbs(target) {
		return "", errs.New(errs.Invalid, "target %q must be an absolute path in the container", target)
	}
	clean := path.Clean(target)
	if clean == "/" {
		return "", errs.New(errs.Invalid, "the target cannot be /")
	}
	return clean, nil
}

func isPath(source string) bool {
	return strings.HasPrefix(source, "/") || strings.HasPrefix(source, ".")
}

func hostPath(source, dir string) string {
	if filepath.IsAbs(source) {
		return filepath.Clean(source)
	}
	return filepath.Join(dir, source)
}

func volumeModes(mount *spec.MountPoint, modes string) error {
	if modes == "" {
		return nil
	}
	seen := map[string]bool{}
	for mode := range strings.SplitSeq(modes, ",") {
		group := mode
		switch {
		case mode == "ro" || mode == "rw":
			group = "access"
			mount.ReadOnly = mode == "ro"
		case mode == "z" || mode == "Z":
			group = "label" // SELinux labels; nothing to do without SELinux
		case mode == "nocopy" && mount.Type == "volume":
			mount.NoCopy = true
		case slices.Contains(propagations, mode) && mount.Type == "bind":
			group = "propagation"
			mount.Propagation = mode
		case mode == "cached" || mode == "delegated" || mode == "consistent":
			group = "consistency" // means something on desktops only
		default:
			return errs.New(errs.Invalid, "mode %q is not known for a %s", mode, mount.Type)
		}
		if seen[group] {
			return errs.New(errs.Invalid, "mode %q comes on top of another of its sort", mode)
		}
		seen[group] = true
	}
	return nil
}

// Tmpfs reads the value of --tmpfs: target[:options].
func Tmpfs(text string) (spec.MountPoint, error) {
	target, options, _ := strings.Cut(text, ":")
	clean, err := mountTarget(target)
	if err != nil {
		return spec.MountPoint{}, errs.New(errs.Invalid, "tmpfs %q: %w", text, err)
	}
	mount := spec.MountPoint{Type: "tmpfs", Target: clean}
	var rest []string
	for option := range strings.SplitSeq(options, ",") {
		key, value, _ := strings.Cut(option, "=")
		switch {
		case option == "":
		case option == "ro" || option == "rw":
			mount.ReadOnly = option == "ro"
		case key == "size" && !strings.HasSuffix(value, "%"):
			mount.TmpfsSize, err = units.RAMInBytes(value)
		case key == "mode":
			mount.TmpfsMode, err = fileMode(value)
		default:
			rest = append(rest, option)
		}
		if err != nil {
			return spec.MountPoint{}, errs.New(errs.Invalid, "tmpfs %q: option %q: %w", text, option, err)
		}
	}
	mount.Options = strings.Join(rest, ",")
	return mount, nil
}

func fileMode(text string) (uint32, error) {
	mode, err := strconv.ParseUint(text, 8, 32)
	if err != nil || mode > 0o7777 {
		return 0, errs.New(errs.Invalid, "%q is no octal file mode such as 1777", text)
	}
	return uint32(mode), nil
}

// Mount reads the value of --mount: comma separated key=value pairs.
// Sources that begin with a dot are taken from the folder dir.
func Mount(text, dir string) (spec.MountPoint, error) {
	mount, err := readMount(text, dir)
	if err != nil {
		return spec.MountPoint{}, errs.New(errs.Invalid, "mount %q: %w", text, err)
	}
	return mount, nil
}

func readMount(text, dir string) (spec.MountPoint, error) {
	fields, err := csv.NewReader(strings.NewReader(text)).Read()
	if err != nil {
		return spec.MountPoint{}, errs.New(errs.Invalid, "expected key=value pairs separated by commas")
	}
	mount := spec.MountPoint{Type: "volume"}
	for _, field := range fields {
		key, value, hasValue := strings.Cut(field, "=")
		if err := mountField(&mount, strings.ToLower(strings.TrimSpace(key)), value, hasValue); err != nil {
			return spec.MountPoint{}, err
		}
	}
	return mount, finishMount(&mount, dir)
}

func mountField(mount *spec.MountPoint, key, value string, hasValue bool) error {
	var err error
	switch key {
	case "readonly", "ro":
		mount.ReadOnly, err = boolean(value, hasValue)
		return err
	case "volume-nocopy":
		mount.NoCopy, err = boolean(value, hasValue)
		return err
	case "bind-nonrecursive":
		var on bool
		if on, err = boolean(value, hasValue); on {
			mount.Recursive = "disabled"
		}
		return err
	case "bind-create-src":
		mount.CreateHost, err = boolean(value, hasValue)
		return err
	}
	if !hasValue {
		return errs.New(errs.Invalid, "%q: expected key=value", key)
	}
	switch key {
	case "type":
		mount.Type = strings.ToLower(value)
	case "source", "src":
		mount.Source = value
	case "target", "dst", "destination":
		mount.Target, err = mountTarget(value)
	case "bind-propagation":
		mount.Propagation = value
	case "bind-recursive":
		mount.Recursive = value
	case "tmpfs-size":
		mount.TmpfsSize, err = units.RAMInBytes(value)
	case "tmpfs-mode":
		mount.TmpfsMode, err = fileMode(value)
	case "consistency": // means something on desktops only
	case "volume-driver":
		if value != "local" {
			err = errs.New(errs.Invalid, "volume driver %q: only local is there", value)
		}
	case "volume-opt", "volume-label":
		err = errs.New(errs.Invalid, "%s: make the volume first, with berth volume create", key)
	default:
		err = errs.New(errs.Invalid, "unknown key %q", key)
	}
	return err
}

func finishMount(mount *spec.MountPoint, dir string) error {
	if mount.Target == "" {
		return errs.New(errs.Invalid, "a target is needed")
	}
	switch mount.Type {
	case "bind":
		if !isPath(mount.Source) {
			return errs.New(errs.Invalid, "a bind's source must be a path that begins with / or ./, not %q", mount.Source)
		}
		mount.Source = hostPath(mount.Source, dir)
	case "volume":
		mount.Anonymous = mount.Source == ""
		if mount.Source != "" && !volumeName.MatchString(mount.Source) {
			return errs.New(errs.Invalid, "%q is no name of a volume; for a path say type=bind", mount.Source)
		}
	case "tmpfs":
		if mount.Source != "" {
			return errs.New(errs.Invalid, "a tmpfs has no source")
		}
	default:
		return errs.New(errs.Invalid, "type %q: expected bind, volume or tmpfs", mount.Type)
	}
	return fitting(mount)
}

// fitting refuses what belongs to another type of mount.
func fitting(mount *spec.MountPoint) error {
	switch {
	case mount.Type != "bind" && (mount.Propagation != "" || mount.Recursive != "" || mount.CreateHost):
		return errs.New(errs.Invalid, "bind-… keys do not go with type=%s", mount.Type)
	case mount.Type != "volume" && mount.NoCopy:
		return errs.New(errs.Invalid, "volume-nocopy does not go with type=%s", mount.Type)
	case mount.Type != "tmpfs" && (mount.TmpfsSize != 0 || mount.TmpfsMode != 0):
		return errs.New(errs.Invalid, "tmpfs-… keys do not go with type=%s", mount.Type)
	case mount.Propagation != "" && !slices.Contains(propagations, mount.Propagation):
		return errs.New(errs.Invalid, "bind-propagation %q: expected one of %s", mount.Propagation, strings.Join(propagations, ", "))
	case !slices.Contains([]string{"", "enabled", "disabled"}, mount.Recursive):
		return errs.New(errs.Invalid, "bind-recursive %q: expected enabled or disabled", mount.Recursive)
	}
	return nil
}

func boolean(text string, given bool) (bool, error) {
	if !given {
		return true, nil
	}
	on, err := strconv.ParseBool(text)
	if err != nil {
		return false, errs.New(errs.Invalid, "%q: expected true or false", text)
	}
	return on, nil
}
