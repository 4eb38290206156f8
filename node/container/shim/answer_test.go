package shim

import (
	"errors"
	"testing"

	bootstrap "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"google.golang.org/protobuf/proto"

	"berth/base/errs"
)

func TestParseAnswer(t *testing.T) {
	message := func(r *bootstrap.BootstrapResult) string {
		out, err := proto.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	for what, tt := range map[string]struct {
		said string
		want endpoint
		kind errs.Kind
	}{
		"a message":           {message(&bootstrap.BootstrapResult{Version: 3, Address: "unix:///s", Protocol: "ttrpc"}), endpoint{"unix:///s", 3}, ""},
		"an address of ten":   {message(&bootstrap.BootstrapResult{Version: 3, Address: "unix:///ss", Protocol: "ttrpc"}), endpoint{"unix:///ss", 3}, ""},
		"noise and a message": {"hello\nworld\n" + message(&bootstrap.BootstrapResult{Version: 2, Address: "unix:///s", Protocol: "TTRPC"}), endpoint{"unix:///s", 2}, ""},
		"an object":           {`{"version":2,"address":"unix:///s","protocol":"ttrpc"}`, endpoint{"unix:///s", 2}, ""},
		"an object on lines":  {"{\n\"version\":3,\n\"address\":\"unix:///s\"}\n", endpoint{"unix:///s", 3}, ""},
		"an object and noise": {"{\"version\":3,\"address\":\"unix:///s\"}\nbye\n", endpoint{"unix:///s", 3}, ""},
		"an address":          {"unix:///run/containerd/s/1\n", endpoint{"unix:///run/containerd/s/1", 2}, ""},
		"an abstract address": {"/containerd-shim/x.sock", endpoint{"/containerd-shim/x.sock", 2}, ""},
		"noise, an address":   {"warning: old\nunix:///s", endpoint{"unix:///s", 2}, ""},
		"another machine's":   {"vsock://3:1024", endpoint{"vsock://3:1024", 2}, ""}, // dial says no
		"nothing":             {" \n", endpoint{}, errs.Internal},
		"words":               {"see http://example.org/ for help", endpoint{}, errs.Internal},
		"an empty object":     {"{}", endpoint{}, errs.Internal},
		"gRPC":                {`{"version":3,"address":"unix:///s","protocol":"grpc"}`, endpoint{}, errs.Unsupported},
		"the future":          {message(&bootstrap.BootstrapResult{Version: 4, Address: "unix:///s", Protocol: "ttrpc"}), endpoint{}, errs.Unsupported},
	} {
		got, err := parseAnswer([]byte(tt.said))
		if got != tt.want || errs.KindOf(err) != tt.kind {
			t.Errorf("%s: %+v, %v", what, got, err)
		}
	}
}

// Whatever a shim prints, it is an address or an error.
func FuzzParseAnswer(f *testing.F) {
	for _, seed := range []string{"", "unix:///s", "{\"address\":\"a\"}", "\x08\x03\x12\x01a\x1a\x05ttrpc", "a\n\n{"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		e, err := parseAnswer(said)
		if (err == nil) != (e.Address != "") || err == nil && e.Version != 2 && e.Version != 3 {
			t.Errorf("%+v, %v", e, err)
		}
		if err != nil && errs.KindOf(err) != errs.Internal && !errors.Is(err, errs.Unsupported) {
			t.Errorf("%v", err)
		}
	})
}
