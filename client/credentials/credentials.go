// Package credentials finds how to log in to a registry where docker keeps
// it: in config.json and through credential helpers. Nothing is written.
package credentials

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/types"

	"berth/base/errs"
	"berth/spec"
)

// hub is the name under which docker keeps the login of docker.io.
const hub = "https://index.docker.io/v1/"

// Lookup returns the login for a registry host ("docker.io",
// "localhost:5000"), or nil if there is none. configDir is the folder of
// config.json; empty means $DOCKER_CONFIG or ~/.docker. A file that cannot
// be read has kind errs.Invalid, a credential helper that fails
// errs.Unavailable.
func Lookup(configDir, host string) (*spec.RegistryAuth, error) {
	dir, err := folder(configDir)
	if err != nil || dir == "" {
		return nil, err
	}
	file, err := config.Load(dir)
	if err != nil {
		return nil, errs.New(errs.Invalid, "docker's configuration: %w", err)
	}
	for _, name := range names(host) {
		auth, err := file.GetAuthConfig(name)
		if err != nil {
			return nil, errs.New(errs.Unavailable, "the credential helper for %s, which %s names: %w", host, file.GetFilename(), err)
		}
		if found := convert(auth); found != nil {
			return found, nil
		}
	}
	return nil, nil
}

// folder is where config.json should be; "" for an account without home.
func folder(given string) (string, error) {
	if given != "" {
		return given, nil
	}
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		return dir, nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		if os.Getenv("HOME") == "" {
			return "", nil
		}
		return "", errors.Join(errs.Internal, err)
	}
	return filepath.Join(home, ".docker"), nil
}

// names are the keys under which the login for host may be kept.
func names(host string) []string {
	switch strings.ToLower(host) {
	case "docker.io", "index.docker.io", "registry-1.docker.io":
		return []string{hub, "docker.io", "registry-1.docker.io"}
	}
	return []string{host, "https://" + host}
}

func convert(a types.AuthConfig) *spec.RegistryAuth {
	if a.Username == "" && a.Password == "" && a.IdentityToken == "" && a.RegistryToken == "" {
		return nil
	}
	r := &spec.RegistryAuth{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
	if a.Username == "<token>" { // how helpers mark an identity token
		r.IdentityToken, r.Username, r.Password = a.Password+a.IdentityToken, "", ""
	}
	return r
}
