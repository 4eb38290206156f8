package client

import (
	"context"
	"io"
	"net/http"

	"berth/spec"
)

// Ping asks whether the node answers.
func (c *Client) Ping(ctx context.Context) error {
	_, err := get[struct{}](ctx, c, "/ping", nil)
	return err
}

// Version says what answers.
func (c *Client) Version(ctx context.Context) (spec.Version, error) {
	return get[spec.Version](ctx, c, "/version", nil)
}

// Info describes the node.
func (c *Client) Info(ctx context.Context) (spec.Info, error) {
	return get[spec.Info](ctx, c, "/info", nil)
}

// DiskUsage tells what the node keeps on disk.
func (c *Client) DiskUsage(ctx context.Context) (spec.DiskUsage, error) {
	return get[spec.DiskUsage](ctx, c, "/df", nil)
}

// PruneOptions says how far SystemPrune goes.
type PruneOptions struct {
	All     bool // images that no container uses, not only those without a name
	Volumes bool // anonymous volumes too
	Filter  spec.Filter
}

// SystemPrune removes what nothing uses: containers that do not run, networks
// without containers, images.
func (c *Client) SystemPrune(ctx context.Context, opts PruneOptions) (spec.SystemPruned, error) {
	q := query{}.flag("all", opts.All).flag("volumes", opts.Volumes).filter(opts.Filter)
	return post[spec.SystemPruned](ctx, c, "/prune", q.values(), nil)
}

// SystemScrub reads all that images are made of, holds it against its digests,
// and repairs what is damaged unless req says otherwise. progress, which may be
// nil, is told how it goes and what is found.
func (c *Client) SystemScrub(ctx context.Context, req spec.ScrubRequest, progress func(spec.ScrubProgress)) (spec.ScrubResult, error) {
	resp, err := c.send(ctx, request{method: http.MethodPost, path: "/system/scrub", body: req})
	if err != nil {
		return spec.ScrubResult{}, err
	}
	defer resp.Body.Close()
	var result *spec.ScrubResult
	err = eachValue(ctx, c, resp.Body, func(p spec.ScrubProgress) error {
		if p.Error != nil {
			return asError(*p.Error)
		}
		result = p.Result
		if progress != nil {
			progress(p)
		}
		return nil
	})
	if err == nil && result == nil {
		err = c.unreachable(ctx, io.ErrUnexpectedEOF)
	}
	if err != nil {
		return spec.ScrubResult{}, err
	}
	return *result, nil
}
