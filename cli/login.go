package cli

import (
	"berth/client/credentials"
	"berth/spec"
)

// login is how to log in to the registry that a name points to: nil where
// the user has no credentials for it.
func login(name string) (*spec.RegistryAuth, error) {
	host := registryOf(name)
	if host == "" { // the node will say what is wrong with the name
		return nil, nil
	}
	return credentials.Lookup("", host)
}
