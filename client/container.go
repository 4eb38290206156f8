package client

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/url"

	"berth/base/errs"
	"berth/spec"
)

// The conditions of ContainerWait.
const (
	NotRunning = "not-running" // at once if it does not run
	NextExit   = "next-exit"
	Removed    = "removed"
)

// ContainerCreate makes a container from an image that the node has.
func (c *Client) ContainerCreate(ctx context.Context, config spec.ContainerConfig) (spec.Container, error) {
	return post[spec.Container](ctx, c, "/containers", nil, config)
}

// ContainerList returns containers, newest first: those that run, or all.
func (c *Client) ContainerList(ctx context.Context, all bool, filter spec.Filter) ([]spec.Container, error) {
	q := query{}.flag("all", all).filter(filter)
	return get[[]spec.Container](ctx, c, "/containers", q.values())
}

// ContainerGet returns one container by its name, its id, or a part of the id
// that only it has.
func (c *Client) ContainerGet(ctx context.Context, ref string) (spec.Container, error) {
	return get[spec.Container](ctx, c, at("containers", ref), nil)
}

// ContainerSizes counts the disk that the container takes.
func (c *Client) ContainerSizes(ctx context.Context, ref string) (spec.ContainerSizes, error) {
	return get[spec.ContainerSizes](ctx, c, at("containers", ref, "sizes"), nil)
}

// ContainerPorts lists the published ports.
func (c *Client) ContainerPorts(ctx context.Context, ref string) ([]spec.PortMapping, error) {
	return get[[]spec.PortMapping](ctx, c, at("containers", ref, "ports"), nil)
}

// ContainerStart runs the container's process. A *StartError says that it
// could not be started.
func (c *Client) ContainerStart(ctx context.Context, ref string) error {
	return c.act(ctx, at("containers", ref, "start"), nil, nil)
}

// ContainerStop sends signal (the container's own when ""), and kills after
// timeout seconds (the container's own when nil, never when negative).
func (c *Client) ContainerStop(ctx context.Context, ref string, timeout *int, signal string) error {
	q := query{}.num("timeout", timeout).str("signal", signal)
	return c.act(ctx, at("containers", ref, "stop"), q.values(), nil)
}

// ContainerRestart stops the container as ContainerStop does, and starts it.
func (c *Client) ContainerRestart(ctx context.Context, ref string, timeout *int, signal string) error {
	q := query{}.num("timeout", timeout).str("signal", signal)
	return c.act(ctx, at("containers", ref, "restart"), q.values(), nil)
}

// ContainerKill sends signal (KILL when "") to the container's first process.
func (c *Client) ContainerKill(ctx context.Context, ref, signal string) error {
	return c.act(ctx, at("containers", ref, "kill"), query{}.str("signal", signal).values(), nil)
}

// ContainerPause freezes the container's processes.
func (c *Client) ContainerPause(ctx context.Context, ref string) error {
	return c.act(ctx, at("containers", ref, "pause"), nil, nil)
}

// ContainerUnpause thaws them.
func (c *Client) ContainerUnpause(ctx context.Context, ref string) error {
	return c.act(ctx, at("containers", ref, "unpause"), nil, nil)
}

// ContainerRename gives the container another name.
func (c *Client) ContainerRename(ctx context.Context, ref, name string) error {
	return c.act(ctx, at("containers", ref, "rename"), query{}.str("name", name).values(), nil)
}

// ContainerUpdate changes limits and restart policy.
func (c *Client) ContainerUpdate(ctx context.Context, ref string, update spec.ContainerUpdate) (spec.Container, error) {
	var out spec.Container
	err := c.call(ctx, request{method: http.MethodPatch, path: at("containers", ref), body: update}, &out)
	return out, err
}

// ContainerRemove takes a container away, with its anonymous volumes if
// volumes is set; one that runs only by force.
func (c *Client) ContainerRemove(ctx context.Context, ref string, force, volumes bool) error {
	q := query{}.flag("force", force).flag("volumes", volumes)
	return c.call(ctx, request{method: http.MethodDelete, path: at("containers", ref), query: q.values()}, nil)
}

// ContainerPrune removes the containers that do not run.
func (c *Client) ContainerPrune(ctx context.Context, filter spec.Filter) (spec.Pruned, error) {
	return post[spec.Pruned](ctx, c, "/containers/prune", query{}.filter(filter).values(), nil)
}

// ContainerTop lists the processes of a container; args are those of ps(1).
func (c *Client) ContainerTop(ctx context.Context, ref string, args []string) (spec.ProcessTable, error) {
	return get[spec.ProcessTable](ctx, c, at("containers", ref, "top"), query{}.list("arg", args).values())
}

// ContainerStats tells what containers use now; all running ones where refs
// is empty.
func (c *Client) ContainerStats(ctx context.Context, refs []string) ([]spec.Stats, error) {
	return get[[]spec.Stats](ctx, c, "/stats", query{}.list("ref", refs).values())
}

// ContainerStatsStream gives what containers use to fn, about once a second,
// until ctx is done, fn fails or, where refs are named, none runs any more.
func (c *Client) ContainerStatsStream(ctx context.Context, refs []string, fn func([]spec.Stats) error) error {
	q := query{}.list("ref", refs).flag("stream", true)
	resp, err := c.send(ctx, request{method: http.MethodGet, path: "/stats", query: q.values()})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return eachValue(ctx, c, resp.Body, func(s statsLine) error {
		if s.Error != nil {
			return asError(*s.Error)
		}
		return fn(s.Stats)
	})
}

type statsLine struct {
	Stats []spec.Stats  `json:"stats"`
	Error *spec.Problem `json:"error"`
}

// ContainerResize sets the size of the container's terminal.
func (c *Client) ContainerResize(ctx context.Context, ref string, size spec.Size) error {
	return c.act(ctx, at("containers", ref, "resize"), nil, size)
}

// ContainerChanges lists the paths that differ from the image.
func (c *Client) ContainerChanges(ctx context.Context, ref string) ([]spec.Change, error) {
	return get[[]spec.Change](ctx, c, at("containers", ref, "changes"), nil)
}

// ContainerCommit makes an image of the container as it is.
func (c *Client) ContainerCommit(ctx context.Context, ref string, req spec.CommitRequest) (spec.Image, error) {
	return post[spec.Image](ctx, c, at("containers", ref, "commit"), nil, req)
}

// ContainerExport writes the container's root file system to w as a tar.
func (c *Client) ContainerExport(ctx context.Context, ref string, w io.Writer) error {
	_, err := c.download(ctx, http.MethodGet, at("containers", ref, "export"), nil, w)
	return err
}

// ContainerStatPath describes a path in the container, a link itself and not
// its target.
func (c *Client) ContainerStatPath(ctx context.Context, ref, path string) (spec.PathStat, error) {
	q := query{}.str("path", path)
	resp, err := c.send(ctx, request{method: http.MethodHead, path: at("containers", ref, "archive"), query: q.values()})
	if err != nil {
		return spec.PathStat{}, err
	}
	defer drain(resp)
	return pathStat(resp.Header)
}

// ContainerCopyFrom writes path, a file or a whole folder, to w as a tar.
func (c *Client) ContainerCopyFrom(ctx context.Context, ref, path string, w io.Writer) (spec.PathStat, error) {
	head, err := c.download(ctx, http.MethodGet, at("containers", ref, "archive"), query{}.str("path", path).values(), w)
	if err != nil {
		return spec.PathStat{}, err
	}
	return pathStat(head)
}

// ContainerCopyTo unpacks a tar into path, a folder in the container. Unless
// overwrite is set, a folder is never replaced by a file nor a file by a folder.
func (c *Client) ContainerCopyTo(ctx context.Context, ref, path string, archive io.Reader, overwrite bool) error {
	q := query{}.str("path", path).flag("overwrite", overwrite)
	return c.call(ctx, request{
		method: http.MethodPut, path: at("containers", ref, "archive"), query: q.values(),
		stream: archive, kind: "application/x-tar",
	}, nil)
}

// download copies an answer to w and returns its header.
func (c *Client) download(ctx context.Context, method, path string, q url.Values, w io.Writer) (http.Header, error) {
	resp, err := c.send(ctx, request{method: method, path: path, query: q})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if err := c.copyBody(ctx, resp, w); err != nil {
		return nil, err
	}
	return resp.Header, nil
}

// statHeader and problemTrailer go with tar streams.
const (
	statHeader     = "Berth-Path-Stat" // base64 of a JSON spec.PathStat
	problemTrailer = "Berth-Problem"   // JSON spec.Problem: why the stream broke off
)

func pathStat(h http.Header) (spec.PathStat, error) {
	var stat spec.PathStat
	data, err := base64.StdEncoding.DecodeString(h.Get(statHeader))
	if err == nil {
		err = json.Unmarshal(data, &stat)
	}
	if err != nil {
		return stat, errs.New(errs.Internal, "read what the node says of the path: %w", err)
	}
	return stat, nil
}
