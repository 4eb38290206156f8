package rest

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"berth/base/errs"
	"berth/node/container"
	"berth/spec"
)

// statusClientGone is what web servers log for a request that its client
// gave up.
const statusClientGone = 499

// statusOf is the code for each kind of error.
func statusOf(k errs.Kind) int {
	switch k {
	case errs.Invalid:
		return http.StatusBadRequest
	case errs.NotFound:
		return http.StatusNotFound
	case errs.Exists, errs.Conflict:
		return http.StatusConflict
	case errs.Denied:
		return http.StatusForbidden
	case errs.Anonymous:
		return http.StatusUnauthorized
	case errs.Exhausted:
		return http.StatusTooManyRequests
	case errs.Unavailable:
		return http.StatusServiceUnavailable
	case errs.Unsupported:
		return http.StatusNotImplemented
	case errs.Canceled:
		return statusClientGone
	case errs.Timeout:
		return http.StatusGatewayTimeout
	case errs.Internal:
		return http.StatusInternalServerError
	}
	return 0 // no kind of ours
}

// problem is a spec.Problem as an error and as an answer.
type problem struct{ spec.Problem }

func (p *problem) Error() string { return p.Detail }

// GetStatus is the code that huma answers with.
func (p *problem) GetStatus() int { return p.Status }

// ContentType is that of RFC 9457.
func (p *problem) ContentType(string) string { return "application/problem+json" }

// problem turns err into an answer. What is not meant for users goes to the
// log, and they get a number to find it there.
func (s *Server) problem(ctx context.Context, err error) *problem {
	kind := errs.KindOf(err)
	start, isStart := errors.AsType[*container.StartError](err)
	if isStart && kind == errs.Internal {
		kind = errs.Invalid // what the runtime says of the user's command
	}
	p := &problem{spec.Problem{Title: string(kind), Status: statusOf(kind), Detail: err.Error()}}
	if isStart {
		p.ExitCode = start.Code
	}
	if kind == errs.Internal {
		number := strings.ToLower(rand.Text()[:8])
		s.Log.ErrorContext(ctx, "a request failed", "number", number, "error", err)
		p.Detail = "something went wrong inside the node; its log tells more: look for number " + number
	}
	return p
}

// fail answers with err, where nothing was written yet.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	write(w, s.problem(r.Context(), err))
}

func write(w http.ResponseWriter, p *problem) {
	w.Header().Set("Content-Type", p.ContentType(""))
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p.Problem) // the client may be gone
}

// asProblem gives the errors that huma finds in a request our form.
func asProblem(_ huma.Context, _ string, v any) (any, error) {
	e, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	var detail strings.Builder
	detail.WriteString(e.Detail)
	sep := ": "
	for _, d := range e.Errors {
		if d != nil {
			fmt.Fprintf(&detail, "%s%s: %s", sep, strings.TrimPrefix(d.Location, "body."), d.Message)
			sep = "; "
		}
	}
	kind := errs.Invalid
	if e.Status >= http.StatusInternalServerError {
		kind = errs.Internal
	}
	return &problem{spec.Problem{Title: string(kind), Status: e.Status, Detail: detail.String()}}, nil
}

// failHead answers HEAD with err. It has no body, so a header carries it.
func (s *Server) failHead(w http.ResponseWriter, r *http.Request, err error) {
	p := s.problem(r.Context(), err)
	text, _ := json.Marshal(p.Problem) // strings and numbers
	w.Header().Set(problemTrailer, string(text))
	w.WriteHeader(p.Status)
}
