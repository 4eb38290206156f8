package cli

import (
	"cmp"
	"context"
	"os"
	"path/filepath"

	"berth/client/credentials"
	"berth/spec"
)

// login is how to log in to the registry that a name points to: nil where
// the user has no credentials for it.
func (p *program) login(ctx context.Context, name string) (*spec.RegistryAuth, error) {
	host := registryOf(name)
	if host == "" { // the node will say what is wrong with the name
		return nil, nil
	}
	dir := os.Getenv("DOCKER_CONFIG")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return nil, nil
		}
		dir = filepath.Join(home, ".docker")
	}
	return credentials.Lookup(ctx, cmp.Or(dir), host)
}
