package rest

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/danielgtaylor/huma/v2"

	"berth/base/errs"
	"berth/spec"
)

const (
	ndjson  = "application/x-ndjson"
	tarType = "application/x-tar"
)

func binary() *huma.Schema { return &huma.Schema{Type: "string", Format: "binary"} }

// progress answers with what move tells, a line for each, and with its
// outcome at the end. The request's end cancels it.
func (s *Server) progress(w http.ResponseWriter, r *http.Request, move func(context.Context, func(spec.Progress)) ([]spec.Image, error)) {
	_ = http.NewResponseController(w).EnableFullDuplex() // an archive is still being read
	s.lines(w, r, ndjson, func(out *lineWriter) error {
		images, err := move(r.Context(), func(p spec.Progress) {
			if p.Phase != spec.Done { // the end is told below, once
				_ = out.value(p) // the context ends too when the client is gone
			}
		})
		_, _ = io.Copy(io.Discard, r.Body) // what an archive has after its end
		if err != nil {
			return out.value(spec.Progress{Phase: spec.Done, Error: &s.problem(r.Context(), err).Problem})
		}
		for _, image := range images {
			if err := out.value(spec.Progress{Phase: spec.Done, Item: image.ID, Status: "ready", Image: &image}); err != nil {
				return err
			}
		}
		return out.value(spec.Progress{Phase: spec.Done, Status: "complete"})
	})
}

// lineWriter streams lines over HTTP: what is put travels at once, or
// together with what came while the client was slow.
type lineWriter struct{ box *outbox }

// value writes v as a line of JSON.
func (l *lineWriter) value(v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return errs.New(errs.Internal, "encode: %w", err)
	}
	return l.box.put(0, data, []byte("\n"))
}

// lines answers with what fill writes, while it does.
func (s *Server) lines(w http.ResponseWriter, r *http.Request, contentType string, fill func(*lineWriter) error) {
	header := w.Header()
	header.Set("Content-Type", contentType)
	header.Set("Cache-Control", "no-store")
	header.Set("Trailer", problemTrailer)
	w.WriteHeader(http.StatusOK)
	flusher := http.NewResponseController(w)
	_ = flusher.Flush()

	out := &lineWriter{newOutbox()}
	var sending sync.WaitGroup
	sending.Go(func() {
		_ = out.box.send(r.Context(), func(frames [][]byte) error { // fill gets the error
			for _, f := range frames {
				if _, err := w.Write(f[1:]); err != nil {
					return err
				}
			}
			return flusher.Flush()
		})
	})
	defer sending.Wait()
	defer out.box.close()
	err := fill(out)
	out.box.close()
	sending.Wait()
	if err != nil || r.Context().Err() != nil {
		s.breakOff(w, r, err)
	}
}

// breakOff ends an answer that has begun. Who takes trailers is told why; for
// everybody else the connection breaks, so that nobody takes a part for the
// whole.
func (s *Server) breakOff(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil || !strings.Contains(r.Header.Get("Te"), "trailers") {
		if r.Context().Err() == nil {
			s.Log.WarnContext(r.Context(), "an answer broke off", "path", r.URL.Path, "error", err)
		}
		panic(http.ErrAbortHandler)
	}
	text, _ := json.Marshal(s.problem(r.Context(), err).Problem)
	w.Header().Set(problemTrailer, string(text))
}
