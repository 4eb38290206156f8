package containerd

import (
	"context"
	"strings"

	api "github.com/containerd/containerd/api/services/version/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
)

// Compatible is the version of containerd whose protocol this is: clients read
// it as the server's and choose by it what they may ask for.
const Compatible = "v2.4.2"

// NewVersion makes the version service: of this program, and of its source.
func NewVersion(version, revision string) Service {
	return &versions{answer: &api.VersionResponse{Version: Compatible + "+berth." + semver(version), Revision: revision}}
}

type versions struct {
	api.UnimplementedVersionServer
	answer *api.VersionResponse
}

// Register adds the service to a server.
func (v *versions) Register(r grpc.ServiceRegistrar) { api.RegisterVersionServer(r, v) }

// Version says what this is, in semantic versioning: containerd's version, with
// this program's as build metadata.
func (v *versions) Version(context.Context, *emptypb.Empty) (*api.VersionResponse, error) {
	return v.answer, nil
}

// semver leaves of a version what build metadata may hold.
func semver(version string) string {
	return strings.Map(func(r rune) rune {
		if r == '.' || r == '-' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' {
			return r
		}
		return '-'
	}, version)
}
