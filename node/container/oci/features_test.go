package oci

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go/features"

	"berth/base/errs"
)

func TestFeatures(t *testing.T) {
	dir := t.TempDir()
	write := func(name, script string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, script := range map[string]string{
		"crun": "echo unknown command features >&2; exit 1",
		"runc": `echo '{"ociVersionMin":"1.0.0","mountOptions":["rro"]}'`,
		"old":  "exit 1",
		"odd":  "echo nothing to read",
	} {
		program, err := newProgram(name, write(name, script), dir, false)
		if err != nil {
			t.Fatal(err)
		}
		r := &Runtime{name: name, usual: program}
		out, err := r.Features(t.Context())
		if name == "old" || name == "odd" {
			if !errors.Is(err, errs.Unsupported) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		var got features.Features
		if err := errors.Join(err, json.Unmarshal(out, &got)); err != nil || !slices.Contains(got.MountOptions, "rro") || got.OCIVersionMin != "1.0.0" {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}
