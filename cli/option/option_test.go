package option_test

import (
	"math"
	"testing"
	"time"

	"berth/cli/option"
	"berth/spec"
)

func TestRestart(t *testing.T) {
	for text, want := range map[string]spec.RestartPolicy{
		"": {}, "no": {Name: "no"}, "always": {Name: "always"}, "unless-stopped": {Name: "unless-stopped"},
		"on-failure": {Name: "on-failure"}, "on-failure:3": {Name: "on-failure", MaxRetries: 3},
	} {
		got, err := option.Restart(text)
		check(t, text, got, want, err)
	}
	refuse(t, func(s string) error { _, err := option.Restart(s); return err }, map[string]string{
		"sometimes": "expected no", "always:3": "only on-failure", "on-failure:x": "no number", "on-failure:-1": "no number",
	})
}

func TestFilter(t *testing.T) {
	got, err := option.Filter([]string{"status=exited", "label=a=b", "STATUS=created", "label!=c", "name = web "})
	check(t, "filter", got, spec.Filter{
		"status": {"exited", "created"}, "label": {"a=b"}, "label!": {"c"}, "name": {"web"},
	}, err)
	refuse(t, func(s string) error { _, err := option.Filter([]string{s}); return err }, map[string]string{
		"exited": "key=value", "=x": "key=value",
	})
}

func TestMoment(t *testing.T) {
	zone := time.FixedZone("there", 3600)
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, zone)
	for text, want := range map[string]time.Time{
		"":                             {},
		"10m":                          now.Add(-10 * time.Minute),
		"0s":                           now,
		"1792573200":                   time.Unix(1792573200, 0),
		"1792573200.5":                 time.Unix(1792573200, 5e8),
		"2026-11-21T10:00:00Z":         time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC),
		"2026-11-21T10:00:00.25+01:00": time.Date(2026, 11, 21, 10, 0, 0, 25e7, zone),
		"2026-11-21T10:00:00":          time.Date(2026, 11, 21, 10, 0, 0, 0, zone),
		"2026-11-21T10:00":             time.Date(2026, 11, 21, 10, 0, 0, 0, zone),
		"2026-11-21":                   time.Date(2026, 11, 21, 0, 0, 0, 0, zone),
		"2026-11-21 10:00:00":          time.Date(2026, 11, 21, 10, 0, 0, 0, zone),
	} {
		got, err := option.Moment(text, now)
		if err != nil || !got.Equal(want) {
			t.Errorf("%q: %v %v, want %v", text, got, err, want)
		}
	}
	refuse(t, func(s string) error { _, err := option.Moment(s, now); return err }, map[string]string{
		"yesterday": "expected", "1.-5": "expected", "2026-13-01": "expected",
	})
}

func TestLimits(t *testing.T) {
	for text, want := range map[string]int64{"": 0, "1.5": 15e8, "0.001": 1e6, "2": 2e9} {
		got, err := option.NanoCPUs(text)
		check(t, text, got, want, err)
	}
	refuse(t, func(s string) error { _, err := option.NanoCPUs(s); return err }, map[string]string{
		"two": "number", "-1": "number", "1e9": "number", "1/2": "number", "0.0000000001": "nine digits", "99999999999": "nine digits",
	})
	for text, want := range map[string]int64{"": 0, "64m": 64 << 20, "1g": 1 << 30, "512": 512, "-1": -1} {
		got, err := option.SwapBytes(text)
		check(t, text, got, want, err)
	}
	refuse(t, func(s string) error { _, err := option.Bytes(s); return err }, map[string]string{"x": "size", "-1": "size"})
	for text, want := range map[string]spec.Rlimit{
		"nofile=1024:2048": {Name: "nofile", Soft: 1024, Hard: 2048},
		"core=0":           {Name: "core"},
		"nproc=-1":         {Name: "nproc", Soft: math.MaxUint64, Hard: math.MaxUint64},
	} {
		got, err := option.Rlimit(text)
		check(t, text, got, want, err)
	}
	refuse(t, func(s string) error { _, err := option.Rlimit(s); return err }, map[string]string{
		"files=1": "ulimit", "nofile": "ulimit", "nofile=5:1": "ulimit",
	})
}

func TestDevices(t *testing.T) {
	for text, want := range map[string]spec.Device{
		"/dev/a":           {Path: "/dev/a", Permissions: "rwm"},
		"/dev/a:r":         {Path: "/dev/a", Permissions: "r"},
		"/dev/a:/dev/b":    {Path: "/dev/a", Target: "/dev/b", Permissions: "rwm"},
		"/dev/a:/dev/b:rw": {Path: "/dev/a", Target: "/dev/b", Permissions: "rw"},
	} {
		got, err := option.Device(text)
		check(t, text, got, want, err)
	}
	refuse(t, func(s string) error { _, err := option.Device(s); return err }, map[string]string{
		"": "absolute", "a": "absolute", "/dev/a:b": "absolute", "/dev/a:/dev/b:x": "made of r", "/a:/b:r:m": "expected",
	})
	got, err := option.BytesPerSecond("/dev/sda:1mb")
	check(t, "bps", got, spec.DeviceThrottle{Path: "/dev/sda", Rate: 1 << 20}, err)
	got, err = option.PerSecond("/dev/sda:100")
	check(t, "iops", got, spec.DeviceThrottle{Path: "/dev/sda", Rate: 100}, err)
	refuse(t, func(s string) error { _, err := option.PerSecond(s); return err }, map[string]string{
		"/dev/sda": "rate", "sda:1": "rate", "/dev/sda:1mb": "no rate", "/dev/sda:-1": "no rate",
	})
}

func TestNetworks(t *testing.T) {
	for text, want := range map[string]spec.EndpointConfig{
		"lab":           {Network: "lab"},
		"container:web": {Network: "container:web"},
		"name=lab,alias=a,alias=b,ip=10.0.0.2,ip6=fd00::2,mac-address=92:d0:c6:0a:29:33": {
			Network: "lab", Aliases: []string{"a", "b"}, IPv4: "10.0.0.2", IPv6: "fd00::2", MAC: "92:d0:c6:0a:29:33",
		},
	} {
		got, err := option.Network(text)
		check(t, text, got, want, err)
	}
	refuse(t, func(s string) error { _, err := option.Network(s); return err }, map[string]string{
		"": "empty", "alias=a": "name=", "name=a,speed=1": "unknown key", "name=a,ip=fd00::2": "IPv4", "name=a,ip6=1.2.3.4": "IPv6", "name=a,mac-address=x": "MAC",
	})
	for text, want := range map[string]string{
		"db:10.0.0.2": "db:10.0.0.2", "db=10.0.0.2": "db:10.0.0.2", "db:fd00::2": "db:fd00::2", "db:[fd00::2]": "db:fd00::2", "host:host-gateway": "host:host-gateway",
	} {
		got, err := option.Host(text)
		check(t, text, got, want, err)
	}
	refuse(t, func(s string) error { _, err := option.Host(s); return err }, map[string]string{
		"db": "name:address", ":1.2.3.4": "name:address", "db:there": "no IP address",
	})
}

func TestSubnets(t *testing.T) {
	got, err := option.Subnets([]string{"10.9.0.5/24", "fd00:9::/64"}, []string{"fd00:9::1", "10.9.0.1"}, []string{"10.9.0.128/25"})
	check(t, "subnets", got, []spec.Subnet{
		{Subnet: "10.9.0.0/24", Gateway: "10.9.0.1", Range: "10.9.0.128/25"}, {Subnet: "fd00:9::/64", Gateway: "fd00:9::1"},
	}, err)
	refuse(t, func(s string) error { _, err := option.Subnets([]string{s}, nil, nil); return err }, map[string]string{"10.9.0.0": "range"})
	refuse(t, func(s string) error { _, err := option.Subnets([]string{"10.9.0.0/24"}, []string{s}, nil); return err }, map[string]string{
		"10.8.0.1": "in no --subnet", "x": "is none",
	})
	refuse(t, func(s string) error { _, err := option.Subnets([]string{"10.9.0.0/24"}, nil, []string{s}); return err }, map[string]string{
		"10.8.0.0/25": "in no --subnet", "10.9.0.1": "is none",
	})
}

func TestSecurity(t *testing.T) {
	profile := file(t, `{"defaultAction":"SCMP_ACT_ALLOW"}`)
	var got spec.Security
	err := option.Security(&got, []string{"no-new-privileges", "seccomp=" + profile, "unmask=ALL", "apparmor=unconfined", "label:disable"})
	check(t, "security", got, spec.Security{NoNewPrivileges: true, Seccomp: `{"defaultAction":"SCMP_ACT_ALLOW"}`, Unmasked: true}, err)
	got = spec.Security{}
	err = option.Security(&got, []string{"no-new-privileges:false", "seccomp=unconfined", "systempaths=unconfined"})
	check(t, "security", got, spec.Security{Seccomp: "unconfined", Unmasked: true}, err)
	refuse(t, func(s string) error { return option.Security(&spec.Security{}, []string{s}) }, map[string]string{
		"seccomp=/does/not/exist": "no such file", "seccomp=" + file(t, "{"): "no JSON", "no-new-privileges=x": "true or false",
		"unmask=/proc": "unmask=all", "apparmor=docker-default": "unconfined", "label=type:x": "disable", "magic=1": "there are",
	})
}

func TestLogOptions(t *testing.T) {
	got, err := option.LogOptions([]string{"max-size=10m", "max-file=5"})
	check(t, "log", got, spec.LogConfig{MaxSize: 10 << 20, MaxFiles: 5}, err)
	refuse(t, func(s string) error { _, err := option.LogOptions([]string{s}); return err }, map[string]string{
		"max-size=x": "max-size", "max-file=0": "at least 1", "tag=x": "expected max-size",
	})
}
