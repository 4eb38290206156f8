package pull

import (
	"context"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/image/reference"
	"berth/image/remote"
	"berth/spec"
)

// Source reads parts of the blobs of one repository. Close it when done.
type Source struct{ repo *remote.Repository }

// Source finds who answers for the repository of req.Reference, but asks
// nobody yet. Kinds: Invalid, and those of a broken hosts.toml.
func (p *Puller) Source(ctx context.Context, req spec.PullRequest) (*Source, error) {
	name, err := reference.Parse(req.Reference)
	if err != nil {
		return nil, err
	}
	repo, err := remote.Open(ctx, p.cfg.Remote, name, remote.Access{Auth: req.Auth, Insecure: req.Insecure})
	if err != nil {
		return nil, err
	}
	return &Source{repo}, nil
}

// Part gives the bytes of a blob from one offset up to another. They are not
// verified. A cut connection is taken up again.
func (s *Source) Part(ctx context.Context, desc ocispec.Descriptor, from, to int64) (io.ReadCloser, error) {
	return s.repo.Part(ctx, desc, from, to)
}

// Close lets idle connections go.
func (s *Source) Close() { s.repo.Close() }
