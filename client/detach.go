package client

import (
	"bytes"
	"io"
	"iter"
	"strings"
)

// splitKeys splits "ctrl-p,ctrl-q" at its commas; a comma is a key too.
func splitKeys(keys string) iter.Seq[string] {
	if keys == "," {
		return func(yield func(string) bool) { yield(",") }
	}
	return strings.SplitSeq(keys, ",")
}

func keyByte(key string) (byte, bool) {
	if len(key) == 1 {
		return key[0], true
	}
	letter, found := strings.CutPrefix(strings.ToLower(key), "ctrl-")
	if !found || len(letter) != 1 {
		return 0, false
	}
	switch b := letter[0]; {
	case b >= 'a' && b <= 'z':
		return b - 'a' + 1, true
	case b == '@':
		return 0, true
	case b >= '[' && b <= '_':
		return b - '[' + 27, true
	}
	return 0, false
}

// detachScanner looks for keys in what the user types. Bytes that may become
// the keys are held back until it is clear that they do not.
type detachScanner struct {
	keys    []byte
	matched int
}

// scan returns what to pass on of p, and whether the keys were typed. The
// result is good until the next call; it may share p's memory.
func (d *detachScanner) scan(p []byte) (pass []byte, detached bool) {
	if len(d.keys) == 0 {
		return p, false
	}
	if d.matched == 0 && bytes.IndexByte(p, d.keys[0]) < 0 {
		return p, false
	}
	out := make([]byte, 0, len(p)+d.matched)
	for _, b := range p {
		if b != d.keys[d.matched] {
			out = append(out, d.keys[:d.matched]...)
			d.matched = 0
		}
		if b != d.keys[d.matched] {
			out = append(out, b)
			continue
		}
		if d.matched++; d.matched == len(d.keys) {
			return out, true
		}
	}
	return out, false
}

// chunk is a piece of the user's input, its end, or the wish to leave.
type chunk struct {
	data   []byte
	end    bool
	detach bool
}

// readInput turns input into chunks until its end, or done.
func readInput(input io.Reader, keys []byte, done <-chan struct{}, out chan<- chunk) {
	give := func(c chunk) bool {
		select {
		case out <- c:
			return true
		case <-done:
			return false
		}
	}
	scanner := detachScanner{keys: keys}
	for {
		buf := make([]byte, 32<<10) // the receiver keeps it
		n, err := input.Read(buf)
		pass, detached := scanner.scan(buf[:n])
		if len(pass) > 0 && !give(chunk{data: pass}) {
			return
		}
		if detached {
			give(chunk{detach: true})
			return
		}
		if err != nil {
			if rest := keys[:scanner.matched]; len(rest) > 0 && !give(chunk{data: rest}) {
				return
			}
			give(chunk{end: true})
			return
		}
	}
}
