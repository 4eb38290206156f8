package daemon

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"berth/base/errs"
	"berth/node/image"
	"berth/node/network"
	"berth/spec"
)

// Where a node keeps its things unless it is told otherwise.
const (
	DefaultRoot   = "/var/lib/berth"
	DefaultState  = "/run/berth"
	DefaultConfig = "/etc/berth/config.toml"
)

// NodeConfig says how a node runs. Fields with a toml tag can stand in the
// configuration file; what the command line sets wins over it.
type NodeConfig struct {
	Root       string `toml:"root"`   // durable state
	State      string `toml:"state"`  // state that is valid until reboot
	Socket     string `toml:"socket"` // the one door; <State>/berth.sock when empty
	Group      string `toml:"group"`  // may use the socket besides root; berth when empty
	ConfigFile string `toml:"-"`      // read if it is there; must be there if named and not the default

	LogLevel  string `toml:"log_level"`  // debug, info, warn, error
	LogFormat string `toml:"log_format"` // text or json
	OTLP      string `toml:"otlp"`       // endpoint for traces, http://host:4318; OTEL_EXPORTER_OTLP_ENDPOINT when empty
	// OTLPRatio is the share of traces that the node begins by itself, 0 to 1;
	// all when nil. Those that a client has begun are the client's choice.
	OTLPRatio *float64 `toml:"otlp_ratio"`

	Runtime  string                   `toml:"runtime"` // used where a container names none; the first of crun and runc that works when empty
	Runtimes map[string]RuntimeConfig `toml:"runtimes"`
	// RuntimeSeconds is how long one command of a runtime may take before it
	// is killed; 120 when 0.
	RuntimeSeconds int              `toml:"runtime_timeout"`
	InitPath       string           `toml:"init_path"`   // what --init runs as process 1
	RemapUsers     bool             `toml:"remap_users"` // containers get the subordinate ids of user berth (/etc/subuid)
	CertsDirs      []string         `toml:"certs_dirs"`  // folders with <host>/hosts.toml
	Registry       RegistryDefaults `toml:"registry"`
	Network        NetworkDefaults  `toml:"network"`
	Storage        StorageDefaults  `toml:"storage"`
	Builder        BuilderDefaults  `toml:"builder"`
	CRI            CRIDefaults      `toml:"cri"`
	NRI            NRIDefaults      `toml:"nri"`

	Version spec.Version    `toml:"-"` // of this program
	Log     io.Writer       `toml:"-"`
	Ready   func(Readiness) `toml:"-"` // called once the socket answers, if set
}

// Readiness is what a node found out while it started.
type Readiness struct {
	NodeConfig
	Snapshotter string
	KeeperPid   int
}

// RuntimeConfig is an OCI runtime program.
type RuntimeConfig struct {
	Path string   `toml:"path"` // a name is looked up in PATH
	Args []string `toml:"args"` // put before the command, as in ["--platform=ptrace"]
	// Foreign says that its containers are not plain processes in plain
	// cgroups of this kernel, as with runsc.
	Foreign bool `toml:"foreign"`
}

// RegistryDefaults bounds what a node takes from registries.
type RegistryDefaults struct {
	StallSeconds  int   `toml:"stall_seconds"`   // give up after so long without a byte; 30 when 0
	MaxLayerBytes int64 `toml:"max_layer_bytes"` // largest unpacked layer; the image room's default when 0
	Parallel      int   `toml:"parallel"`        // layers of one image fetched at once; the image room's default when 0
	// Blobs says which compressed layers stay once they are unpacked: keep,
	// until-pushed or drop. keep when empty.
	Blobs image.Policy `toml:"blobs"`
	// Lazy says when containers start before all files of their image are here.
	Lazy image.Laziness `toml:"lazy"`
}

// StorageDefaults say how layers are kept.
type StorageDefaults struct {
	Driver    string `toml:"driver"`     // auto, lcfs, lcfs-loop, overlay, btrfs, reflink or copy; auto when empty
	ScrubDays *int   `toml:"scrub_days"` // a scrub in the background every so many days; 30 when nil, never when 0
}

// defaultScrubDays is how often where nothing is said: a flip in a month is rare.
const defaultScrubDays = 30

func (d StorageDefaults) scrubDays() int {
	if d.ScrubDays == nil {
		return defaultScrubDays
	}
	return *d.ScrubDays
}

// NetworkDefaults are the addresses that networks are given.
type NetworkDefaults struct {
	Pools      []string `toml:"pools"` // CIDR ranges that new networks are cut from
	CNIConfDir string   `toml:"cni_conf_dir"`
	CNIBinDir  string   `toml:"cni_bin_dir"`
	// CNITimeoutSeconds is how long plugins may take for one container; 60 when 0.
	CNITimeoutSeconds int `toml:"cni_timeout"`
	// PodNetwork is where pods go whatever CNI says: a bridge network of the
	// node, or "cni", which waits for a configuration.
	PodNetwork string `toml:"pod_network"`
}

// withFile completes c from its configuration file and the defaults.
func (c NodeConfig) withFile() (NodeConfig, error) {
	var file NodeConfig
	path := cmp.Or(c.ConfigFile, DefaultConfig)
	content, err := os.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && c.ConfigFile == "":
	case err != nil:
		return c, errs.New(errs.Invalid, "configuration: %w", err)
	default:
		defer content.Close()
		if err := toml.NewDecoder(content).DisallowUnknownFields().Decode(&file); err != nil {
			return c, errs.New(errs.Invalid, "configuration %s: %s", path, explain(err))
		}
	}

	out := file
	out.ConfigFile = path
	out.Root = cmp.Or(c.Root, file.Root, DefaultRoot)
	out.State = cmp.Or(c.State, file.State, DefaultState)
	out.Socket = cmp.Or(c.Socket, file.Socket, filepath.Join(out.State, "berth.sock"))
	out.Group = cmp.Or(c.Group, file.Group, "berth")
	out.LogLevel = cmp.Or(c.LogLevel, file.LogLevel, "info")
	out.LogFormat = cmp.Or(c.LogFormat, file.LogFormat, "text")
	out.OTLP = cmp.Or(c.OTLP, file.OTLP, os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT"))
	out.Runtime = cmp.Or(c.Runtime, file.Runtime)
	out.Storage.Driver = cmp.Or(c.Storage.Driver, file.Storage.Driver, autoDriver)
	out.Version, out.Log, out.Ready = c.Version, c.Log, c.Ready
	if out.Registry.Blobs, err = image.ParsePolicy(string(file.Registry.Blobs)); err != nil {
		return c, errs.New(errs.Invalid, "configuration %s: [registry] %w", path, err)
	}
	if out.Registry.Lazy, err = image.ParseLaziness(string(file.Registry.Lazy)); err != nil {
		return c, errs.New(errs.Invalid, "configuration %s: [registry] %w", path, err)
	}
	if days := out.Storage.scrubDays(); days < 0 || days > 3650 {
		return c, errs.New(errs.Invalid, "configuration %s: [storage] scrub_days %d: want 0 for never, or up to 3650", path, days)
	}
	if ratio := out.otlpRatio(); ratio < 0 || ratio > 1 {
		return c, errs.New(errs.Invalid, "configuration %s: otlp_ratio %g: want 0 to 1", path, ratio)
	}
	for _, dir := range []*string{&out.Root, &out.State, &out.Socket} {
		if *dir, err = filepath.Abs(*dir); err != nil {
			return c, fmt.Errorf("configuration: %w", err)
		}
	}
	return out, nil
}

func (c NodeConfig) otlpRatio() float64 {
	if c.OTLPRatio == nil {
		return 1
	}
	return *c.OTLPRatio
}

// explain shows the line of a configuration file that cannot be read.
func explain(err error) string {
	var unknown *toml.StrictMissingError
	var syntax *toml.DecodeError
	switch {
	case errors.As(err, &unknown):
		return "unknown setting\n" + unknown.String()
	case errors.As(err, &syntax):
		return syntax.Error() + "\n" + syntax.String()
	}
	return err.Error()
}

// pools reads "10.10.0.0/16" or "10.10.0.0/16:24", the bits of the subnets
// cut from it.
func (d NetworkDefaults) pools() ([]network.Pool, error) {
	pools := make([]network.Pool, 0, len(d.Pools))
	for _, text := range d.Pools {
		cidr, bits, sized := strings.Cut(text, ":")
		base, err := netip.ParsePrefix(cidr)
		if err != nil {
			return nil, errs.New(errs.Invalid, "configuration: pool %q: %w", text, err)
		}
		size := max(base.Bits(), 24)
		if sized {
			if size, err = strconv.Atoi(bits); err != nil || size < base.Bits() || size > 30 {
				return nil, errs.New(errs.Invalid, "configuration: pool %q: want subnets of %d to 30 bits", text, base.Bits())
			}
		}
		pools = append(pools, network.Pool{Base: base.Masked(), Size: size})
	}
	return pools, nil
}
