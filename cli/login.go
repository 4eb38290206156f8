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

// logins are the user's for the registries that repositories are in.
func logins(repositories []string) (spec.Logins, error) {
	all := spec.Logins{}
	for _, repository := range repositories {
		host := registryOf(repository)
		if _, known := all[host]; known || host == "" {
			continue
		}
		auth, err := credentials.Lookup("", host)
		if err != nil {
			return nil, err
		}
		if auth != nil {
			all[host] = *auth
		}
	}
	return all, nil
}
