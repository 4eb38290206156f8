package client

import (
	"context"
	"io"
	"net/http"

	"berth/base/errs"
	"berth/spec"
)

// ImageList returns the node's images.
func (c *Client) ImageList(ctx context.Context, filter spec.Filter) ([]spec.Image, error) {
	return get[[]spec.Image](ctx, c, "/images", query{}.filter(filter).values())
}

// ImageGet returns one image by a name, its digest or a part of its id.
func (c *Client) ImageGet(ctx context.Context, ref string) (spec.Image, error) {
	return get[spec.Image](ctx, c, at("images", ref), nil)
}

// ImagePull fetches an image from its registry, telling progress as it goes
// unless that is nil.
func (c *Client) ImagePull(ctx context.Context, req spec.PullRequest, progress func(spec.Progress)) (spec.Image, error) {
	images, err := c.move(ctx, request{method: http.MethodPost, path: "/images/pull", body: req}, progress)
	if err != nil {
		return spec.Image{}, err
	}
	if len(images) != 1 {
		return spec.Image{}, errs.New(errs.Internal, "the node did not say which image it pulled")
	}
	return images[0], nil
}

// ImagePush sends an image to its registry.
func (c *Client) ImagePush(ctx context.Context, req spec.PushRequest, progress func(spec.Progress)) error {
	_, err := c.move(ctx, request{method: http.MethodPost, path: "/images/push", body: req}, progress)
	return err
}

// ImageLoad reads images from an archive as ImageSave or docker save write
// it, compressed or not.
func (c *Client) ImageLoad(ctx context.Context, archive io.Reader, progress func(spec.Progress)) ([]spec.Image, error) {
	return c.move(ctx, request{
		method: http.MethodPost, path: "/images/load",
		stream: archive, kind: "application/x-tar",
	}, progress)
}

// ImageSave writes images to w, in the format docker-archive or oci-archive.
func (c *Client) ImageSave(ctx context.Context, refs []string, format string, w io.Writer) error {
	_, err := c.download(ctx, http.MethodPost, "/images/save", query{}.list("ref", refs).str("format", format).values(), w)
	return err
}

// ImageTag gives an image a further name.
func (c *Client) ImageTag(ctx context.Context, source, name string) error {
	return c.act(ctx, at("images", source, "tag"), query{}.str("name", name).values(), nil)
}

// ImageRemove takes a name off an image, and the image away with its last name.
func (c *Client) ImageRemove(ctx context.Context, ref string, force bool) ([]spec.RemovedImage, error) {
	return remove[[]spec.RemovedImage](ctx, c, at("images", ref), query{}.flag("force", force).values())
}

// ImageHistory lists the steps of an image's making, newest first.
func (c *Client) ImageHistory(ctx context.Context, ref string) ([]spec.HistoryEntry, error) {
	return get[[]spec.HistoryEntry](ctx, c, at("images", ref, "history"), nil)
}

// ImagePrune removes images without a name, or all that no container uses.
func (c *Client) ImagePrune(ctx context.Context, all bool, filter spec.Filter) (spec.Pruned, error) {
	return post[spec.Pruned](ctx, c, "/images/prune", query{}.flag("all", all).filter(filter).values(), nil)
}

// move makes a call that answers with progress, and returns the images that
// it tells of at its end.
func (c *Client) move(ctx context.Context, r request, progress func(spec.Progress)) ([]spec.Image, error) {
	resp, err := c.send(ctx, r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var images []spec.Image
	var done bool
	err = eachValue(ctx, c, resp.Body, func(p spec.Progress) error {
		if p.Error != nil {
			return asError(*p.Error)
		}
		if p.Image != nil {
			images = append(images, *p.Image)
		}
		done = done || p.Phase == spec.Done && p.Status == "complete"
		if progress != nil {
			progress(p)
		}
		return nil
	})
	if err == nil && !done {
		err = c.unreachable(ctx, io.ErrUnexpectedEOF)
	}
	return images, err
}
