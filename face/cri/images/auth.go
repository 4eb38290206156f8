package images

import (
	"encoding/base64"
	"net/url"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/base/errs"
	"berth/image/reference"
	"berth/spec"
)

// credentials are what a client gives to log in with, in one of its forms; nil
// where it gives none, or ones for another registry.
func credentials(a *cri.AuthConfig, ref string) (*spec.RegistryAuth, error) {
	if a == nil || !isFor(a.GetServerAddress(), ref) {
		return nil, nil
	}
	auth := &spec.RegistryAuth{
		Username: a.GetUsername(), Password: a.GetPassword(), IdentityToken: a.GetIdentityToken(), RegistryToken: a.GetRegistryToken(),
	}
	if auth.Username == "" && auth.IdentityToken == "" && auth.RegistryToken == "" && a.GetAuth() != "" {
		name, password, err := basic(a.GetAuth())
		if err != nil {
			return nil, err
		}
		auth.Username, auth.Password = name, password
	}
	if *auth == (spec.RegistryAuth{}) {
		return nil, nil
	}
	return auth, nil
}

// basic reads what stands in files as auth: user and password, in base64.
func basic(text string) (user, password string, err error) {
	plain, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		plain, err = base64.RawURLEncoding.DecodeString(strings.TrimRight(text, "="))
	}
	if err != nil {
		return "", "", errs.New(errs.Invalid, "credentials: auth is not in base64")
	}
	user, password, found := strings.Cut(string(plain), ":")
	if !found {
		return "", "", errs.New(errs.Invalid, "credentials: auth is not user:password")
	}
	return user, strings.Trim(password, "\x00"), nil
}

// isFor says whether credentials for a server are for the registry of ref.
// None named is any.
func isFor(server, ref string) bool {
	if server == "" {
		return true
	}
	name, err := reference.Parse(ref)
	if err != nil {
		return true // the pull will say so
	}
	host := server
	if u, err := url.Parse(server); err == nil && u.Host != "" {
		host = u.Host
	}
	host, _, _ = strings.Cut(host, "/")
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		host = "docker.io"
	}
	return host == name.Domain()
}
