package credentials_test

import (
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"berth/base/errs"
	"berth/client/credentials"
	"berth/spec"
)

func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

func TestLookup(t *testing.T) {
	dir, bin := t.TempDir(), t.TempDir()
	auth := base64.StdEncoding.EncodeToString([]byte("me:secret:with colon"))
	write(t, filepath.Join(dir, "config.json"), `{
		"auths": {
			"https://index.docker.io/v1/": {"auth": "`+auth+`"},
			"localhost:5000": {"auth": "`+auth+`"},
			"https://old.example": {"auth": "`+auth+`"},
			"token.example": {"identitytoken": "refresh"}
		},
		"credHelpers": {"helped.example": "berthtest", "tokens.example": "berthtest", "broken.example": "absent"}
	}`, 0o600)
	write(t, filepath.Join(bin, "docker-credential-berthtest"), `#!/bin/sh
read host
case $host in
helped.example) echo '{"ServerURL":"helped.example","Username":"h","Secret":"s"}' ;;
tokens.example) echo '{"ServerURL":"tokens.example","Username":"<token>","Secret":"t"}' ;;
*) echo 'credentials not found in native keychain'; exit 1 ;;
esac
`, 0o755)
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	t.Setenv("DOCKER_AUTH_CONFIG", "")
	mine := spec.RegistryAuth{Username: "me", Password: "secret:with colon"}
	for host, want := range map[string]spec.RegistryAuth{
		"docker.io":      mine,
		"localhost:5000": mine,
		"old.example":    mine,
		"token.example":  {IdentityToken: "refresh"},
		"helped.example": {Username: "h", Password: "s"},
		"tokens.example": {IdentityToken: "t"},
	} {
		got, err := credentials.Lookup(dir, host)
		if err != nil || got == nil || *got != want {
			t.Errorf("%s: %+v, %v; want %+v", host, got, err, want)
		}
	}
	if got, err := credentials.Lookup(dir, "unknown.example"); got != nil || err != nil {
		t.Errorf("unknown: %v, %v", got, err)
	}
	if got, err := credentials.Lookup(dir, "broken.example"); got != nil || !errors.Is(err, errs.Unavailable) {
		t.Errorf("broken helper: %v, %v", got, err)
	}
}

func TestLookupWithoutOrWithABadFile(t *testing.T) {
	dir := t.TempDir()
	if got, err := credentials.Lookup(filepath.Join(dir, "none"), "docker.io"); got != nil || err != nil {
		t.Errorf("no file: %v, %v", got, err)
	}
	t.Setenv("DOCKER_CONFIG", dir)
	write(t, filepath.Join(dir, "config.json"), `{"auths":`, 0o600)
	if _, err := credentials.Lookup("", "docker.io"); !errors.Is(err, errs.Invalid) {
		t.Errorf("a bad file: %v", err)
	}
}
