package option

import (
	"bufio"
	"bytes"
	"os"
	"strings"
	"unicode/utf8"

	"berth/base/errs"
)

// Lookup finds a variable of the user's own environment; os.LookupEnv is one.
type Lookup func(name string) (value string, found bool)

// Env reads files of variables and then single ones, in that order. A name
// without = takes its value from the user's environment, and is left out
// where it is not set there.
func Env(files, entries []string, lookup Lookup) ([]string, error) {
	var env []string
	for _, file := range files {
		lines, err := readLines(file, "env file")
		if err != nil {
			return nil, err
		}
		for _, line := range lines {
			if env, err = addEnv(env, line, lookup); err != nil {
				return nil, errs.New(errs.Invalid, "env file %s: %w", file, err)
			}
		}
	}
	for _, entry := range entries {
		var err error
		if env, err = addEnv(env, entry, lookup); err != nil {
			return nil, err
		}
	}
	return env, nil
}

func addEnv(env []string, entry string, lookup Lookup) ([]string, error) {
	name, _, hasValue := strings.Cut(entry, "=")
	if name == "" {
		return nil, errs.New(errs.Invalid, "variable %q: expected NAME=value", entry)
	}
	if hasValue {
		return append(env, entry), nil
	}
	if value, found := lookup(name); found {
		return append(env, name+"="+value), nil
	}
	return env, nil
}

// Labels reads files of labels and then single ones; a label without = is
// empty.
func Labels(files, entries []string) (map[string]string, error) {
	var all []string
	for _, file := range files {
		lines, err := readLines(file, "label file")
		if err != nil {
			return nil, err
		}
		all = append(all, lines...)
	}
	return Map(append(all, entries...))
}

// readLines gives the lines of a file that say something: no comments, no
// blanks. Values keep every byte, quotes included.
func readLines(file, what string) ([]string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, errs.New(errs.Invalid, "%s: %w", what, err)
	}
	lines, err := splitLines(data)
	if err != nil {
		return nil, errs.New(errs.Invalid, "%s %s: %w", what, file, err)
	}
	return lines, nil
}

func splitLines(data []byte) ([]string, error) {
	if !utf8.Valid(data) {
		return nil, errs.New(errs.Invalid, "not UTF-8 text")
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	scanner := bufio.NewScanner(bytes.NewReader(data))
	scanner.Buffer(nil, 1<<20)
	var lines []string
	for scanner.Scan() {
		line := strings.TrimLeft(scanner.Text(), " \t")
		if line == "" || line[0] == '#' {
			continue
		}
		name, _, _ := strings.Cut(line, "=")
		if strings.ContainsAny(name, " \t") {
			return nil, errs.New(errs.Invalid, "name %q contains white space", name)
		}
		lines = append(lines, line)
	}
	if err := scanner.Err(); err != nil {
		return nil, errs.New(errs.Invalid, "%w", err)
	}
	return lines, nil
}
