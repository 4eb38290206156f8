package shim

import (
	"bytes"
	"encoding/json"
	"strings"
	"unicode/utf8"

	bootstrap "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"google.golang.org/protobuf/proto"

	"berth/base/errs"
)

// endpoint is where a shim listens, and what it speaks there.
type endpoint struct {
	Address string `json:"address"` // unix:///path, or the name of an abstract socket
	Version int    `json:"version"` // of the task service
}

// newest is the newest version of the task service that we speak.
const newest = 3

// mostNoise is how many lines an answer is looked for in.
const mostNoise = 100

// parseAnswer reads what the command start printed. Shims of containerd 2.3
// and later print a message of protobuf, those before a JSON object, old ones
// just the address. What a shim or its libraries print before is skipped, line
// by line.
func parseAnswer(out []byte) (endpoint, error) {
	rest := out
	for range mostNoise {
		if e, found, err := parseOne(rest); found || err != nil {
			return e, err
		}
		i := bytes.IndexByte(rest, '\n')
		if i < 0 {
			break
		}
		rest = rest[i+1:]
	}
	if len(bytes.TrimSpace(out)) == 0 {
		return endpoint{}, errs.New(errs.Internal, "the shim did not say where it listens")
	}
	return endpoint{}, errs.New(errs.Internal, "no address in what the shim said: %s", quote(out))
}

// parseOne reads an answer that begins where out begins.
func parseOne(out []byte) (e endpoint, found bool, err error) {
	var result bootstrap.BootstrapResult
	if text := bytes.TrimSpace(out); len(text) > 0 && text[0] == '{' {
		object, _, _ := bytes.Cut(text, []byte("\n"))
		if json.Unmarshal(text, &result) != nil && json.Unmarshal(object, &result) != nil {
			return endpoint{}, false, nil
		}
	} else if address, ok := plainAddress(out); ok {
		return endpoint{Address: address, Version: 2}, true, nil
	} else if proto.Unmarshal(out, &result) != nil || result.GetProtocol() == "" {
		return endpoint{}, false, nil
	}
	if result.GetAddress() == "" {
		return endpoint{}, false, nil
	}
	switch protocol := strings.ToLower(result.GetProtocol()); {
	case protocol != "" && protocol != "ttrpc":
		return endpoint{}, false, errs.New(errs.Unsupported, "the shim speaks %s: only ttrpc is understood", quote([]byte(protocol)))
	case result.GetVersion() > newest:
		return endpoint{}, false, errs.New(errs.Unsupported, "the shim speaks version %d of the protocol: only 2 and 3 are understood", result.GetVersion())
	}
	return endpoint{Address: result.GetAddress(), Version: max(int(result.GetVersion()), 2)}, true, nil
}

// plainAddress reads the first line as the address of a socket: a URI, or the
// path that names an abstract one.
func plainAddress(out []byte) (string, bool) {
	line, _, _ := bytes.Cut(out, []byte("\n"))
	address := strings.TrimSpace(string(line))
	if !utf8.ValidString(address) || strings.ContainsFunc(address, func(r rune) bool { return r < ' ' }) {
		return "", false
	}
	scheme, _, uri := strings.Cut(address, "://")
	plain := uri && !strings.ContainsAny(scheme, " \t/") || strings.HasPrefix(address, "/containerd-shim/")
	return address, plain && !strings.ContainsAny(address, " \t")
}

// quote makes what a foreign program said fit for an error.
func quote(said []byte) string {
	text := strings.ToValidUTF8(strings.TrimSpace(string(said)), "?")
	text = strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, text)
	const most = 300
	if len(text) > most {
		text = text[:most] + "…"
	}
	return "\"" + text + "\""
}
