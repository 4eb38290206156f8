package option_test

import (
	"errors"
	"testing"

	"berth/base/errs"
	"berth/cli/option"
	"berth/spec"
)

func TestPublish(t *testing.T) {
	for text, want := range map[string]spec.PortMapping{
		"80":                    {ContainerPort: 80, Protocol: "tcp"},
		"8080:80":               {HostPort: 8080, ContainerPort: 80, Protocol: "tcp"},
		"8080:80/udp":           {HostPort: 8080, ContainerPort: 80, Protocol: "udp"},
		"8080:80/TCP":           {HostPort: 8080, ContainerPort: 80, Protocol: "tcp"},
		"127.0.0.1:8080:80":     {HostIP: "127.0.0.1", HostPort: 8080, ContainerPort: 80, Protocol: "tcp"},
		"127.0.0.1::80":         {HostIP: "127.0.0.1", ContainerPort: 80, Protocol: "tcp"},
		"0:80":                  {ContainerPort: 80, Protocol: "tcp"},
		"[::1]:8080:80":         {HostIP: "::1", HostPort: 8080, ContainerPort: 80, Protocol: "tcp"},
		"[::]:80:80/sctp":       {HostIP: "::", HostPort: 80, ContainerPort: 80, Protocol: "sctp"},
		"[fe80::1]::80":         {HostIP: "fe80::1", ContainerPort: 80, Protocol: "tcp"},
		"8000-8009:9000-9009":   {HostPort: 8000, ContainerPort: 9000, Protocol: "tcp", Range: 10},
		"9000-9001":             {ContainerPort: 9000, Protocol: "tcp", Range: 2},
		"9000-9000":             {ContainerPort: 9000, Protocol: "tcp"},
		"1.2.3.4:7-8:17-18/udp": {HostIP: "1.2.3.4", HostPort: 7, ContainerPort: 17, Protocol: "udp", Range: 2},
		"target=80,published=8080,protocol=udp,mode=host": {HostPort: 8080, ContainerPort: 80, Protocol: "udp"},
		"target=80": {ContainerPort: 80, Protocol: "tcp"},
	} {
		got, err := option.Publish(text)
		check(t, text, got, want, err)
	}
	refuse(t, func(s string) error { _, err := option.Publish(s); return err }, map[string]string{
		"":                    "no port",
		"http":                "no port",
		"0":                   "no port",
		"65536:80":            "no port",
		"80:":                 "no port",
		"80/icmp":             "expected tcp, udp or sctp",
		"::1:80:80":           "in brackets",
		"[::1:80:80":          "[address]:port:port",
		"[::1]80:80":          "[address]:port:port",
		"::80":                "address is empty",
		"localhost:80:80":     "no IP address",
		"8000-8001:9000":      "2 ports of the host cannot stand for 1",
		"9-8":                 "ends before it begins",
		"target=80,speed=mad": "unknown key",
		"published=80":        "no port",
	})
}

func TestExpose(t *testing.T) {
	for text, want := range map[string][]spec.Exposed{
		"80": {"80/tcp"}, "53/udp": {"53/udp"}, "65534-65535": {"65534/tcp", "65535/tcp"},
	} {
		got, err := option.Expose(text)
		check(t, text, got, want, err)
	}
	refuse(t, func(s string) error { _, err := option.Expose(s); return err }, map[string]string{
		"0": "no port", "80/x": "tcp, udp or sctp", "2-1": "ends before",
	})
}

func FuzzPublish(f *testing.F) {
	for _, seed := range []string{"80", "1.2.3.4:7-8:17-18/udp", "[::1]:8080:80", "target=80,published=1", "1-65535:1-65535"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		m, err := option.Publish(text)
		if err != nil {
			if !errors.Is(err, errs.Invalid) {
				t.Fatal(err)
			}
			return
		}
		count := int(max(1, m.Range))
		if m.ContainerPort == 0 || int(m.ContainerPort)+count-1 > 65535 || m.HostPort != 0 && int(m.HostPort)+count-1 > 65535 {
			t.Fatalf("%q: %+v", text, m)
		}
	})
}
