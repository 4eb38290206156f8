package rest

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"

	"berth/spec"
)

const (
	statHeader     = "Berth-Path-Stat" // base64 of a JSON spec.PathStat
	problemTrailer = "Berth-Problem"   // JSON spec.Problem: why the stream broke off
)

// InPath is a path in a container.
type InPath struct {
	Named
	Path string `query:"path" required:"true" doc:"in the container"`
}

// files is the routes that carry files of containers.
func (r *routes) files() {
	s := r.server
	stream(r, gives(r.operation("GET /containers/{ref}/export", "ContainerExport", "Read a container's root file system"), tarType, "the files", binary()),
		func(w http.ResponseWriter, req *http.Request, in *Named) {
			s.download(w, req, func(ctx context.Context, out io.Writer) error {
				return s.Containers.Export(ctx, in.Ref, out)
			})
		})
	stream(r, gives(r.operation("GET /containers/{ref}/archive", "ContainerCopyFrom", "Read a file or folder of a container; the header "+statHeader+" describes it (base64 of JSON)"),
		tarType, "the files", binary()),
		func(w http.ResponseWriter, req *http.Request, in *InPath) {
			stat, err := s.Containers.StatPath(req.Context(), in.Ref, in.Path)
			if err != nil {
				s.fail(w, req, err)
				return
			}
			w.Header().Set(statHeader, encodeStat(stat))
			s.download(w, req, func(ctx context.Context, out io.Writer) error {
				_, err := s.Containers.CopyFrom(ctx, in.Ref, in.Path, out)
				return err
			})
		})
	stream(r, r.operation("HEAD /containers/{ref}/archive", "ContainerStatPath", "Describe a file or folder of a container, in the header "+statHeader),
		func(w http.ResponseWriter, req *http.Request, in *InPath) {
			stat, err := s.Containers.StatPath(req.Context(), in.Ref, in.Path)
			if err != nil {
				s.failHead(w, req, err)
				return
			}
			w.Header().Set(statHeader, encodeStat(stat))
		})
	put := takes(r.operation("PUT /containers/{ref}/archive", "ContainerCopyTo", "Unpack files into a folder of a container"), tarType, "the files")
	put.Responses["204"] = empty("unpacked")
	stream(r, put, func(w http.ResponseWriter, req *http.Request, in *struct {
		InPath
		Overwrite bool `query:"overwrite" doc:"a file may replace a folder, and a folder a file"`
	},
	) {
		err := s.Containers.CopyTo(req.Context(), in.Ref, in.Path, req.Body, in.Overwrite)
		_, _ = io.Copy(io.Discard, req.Body) // a client still writing would not read the answer
		if err != nil {
			s.fail(w, req, err)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
}

func encodeStat(stat spec.PathStat) string {
	data, _ := json.Marshal(stat) // strings and numbers
	return base64.StdEncoding.EncodeToString(data)
}

// download answers with the tar that fill writes. What goes wrong before the
// first byte is an ordinary error.
func (s *Server) download(w http.ResponseWriter, r *http.Request, fill func(context.Context, io.Writer) error) {
	begin := &beginning{w: w}
	out := bufio.NewWriterSize(begin, 128<<10)
	err := fill(r.Context(), out)
	if err == nil {
		err = out.Flush()
	}
	switch {
	case err == nil:
		begin.header()
	case begin.begun:
		s.breakOff(w, r, err)
	default:
		w.Header().Del(statHeader)
		s.fail(w, r, err)
	}
}

// beginning sends the header with the first byte.
type beginning struct {
	w     http.ResponseWriter
	begun bool
}

func (b *beginning) Write(p []byte) (int, error) {
	b.header()
	return b.w.Write(p)
}

func (b *beginning) header() {
	if b.begun {
		return
	}
	b.begun = true
	b.w.Header().Set("Content-Type", tarType)
	b.w.Header().Set("Trailer", problemTrailer)
	b.w.WriteHeader(http.StatusOK)
}
