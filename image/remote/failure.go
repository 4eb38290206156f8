package remote

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"

	"berth/base/errs"
)

// failure is an answer we did not want, or none.
type failure struct {
	err    error // of a kind
	status int   // 0 where no answer came
	again  bool  // another attempt may fare better
	after  time.Duration
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// judge passes a good answer and explains any other.
func (r *Repository) judge(h docker.RegistryHost, q request, resp *http.Response) (*http.Response, error) {
	if slices.Contains(q.ok, resp.StatusCode) {
		return resp, nil
	}
	after := retryAfter(resp)
	said := said(drain(resp))
	f := &failure{status: resp.StatusCode, after: after}
	switch code := resp.StatusCode; {
	case code == http.StatusUnauthorized:
		return nil, r.unknown(h, said, nil)
	case code == http.StatusForbidden:
		f.err = errs.New(errs.Denied, "registry %s refuses access to %s: check the rights of the account%s", h.Host, r.name.Path(), said)
	case code == http.StatusNotFound:
		f.err = errs.New(errs.NotFound, "registry %s has no %s of %s%s", h.Host, strings.Join(q.path, " "), r.name.Path(), said)
	case code == http.StatusTooManyRequests:
		f.again = true
		hint := "try again later, or log in for a higher limit"
		if after > 0 {
			hint = "try again in " + after.Round(time.Second).String()
		}
		f.err = errs.New(errs.Exhausted, "registry %s limits how much may be asked of it: %s%s", h.Host, hint, said)
	case code >= 500 || code == http.StatusRequestTimeout:
		f.again = true
		f.err = errs.New(errs.Unavailable, "registry %s failed (%s): try again later%s", h.Host, resp.Status, said)
	default:
		f.err = errs.New(errs.Invalid, "registry %s answered %s to %s %s%s", h.Host, resp.Status, q.method, strings.Join(q.path, "/"), said)
	}
	return nil, f
}

// unknown explains a 401.
func (r *Repository) unknown(h docker.RegistryHost, said string, why error) error {
	f := &failure{status: http.StatusUnauthorized}
	switch a := r.access.Auth; {
	case a == nil:
		f.err = errs.New(errs.Anonymous, "registry %s gives no anonymous access to %s, or has no such repository: log in (docker login %s) and try again",
			h.Host, r.name.Path(), r.name.Domain())
	case why != nil && !errors.Is(why, docker.ErrInvalidAuthorization):
		f.err = errs.New(errs.Anonymous, "registry %s did not accept the login for %s: %w", h.Host, r.name.Path(), discreet(why))
	default:
		f.err = errs.New(errs.Anonymous, "registry %s did not accept the login for %s: check user and password, or log in again (docker login %s)%s",
			h.Host, r.name.Path(), r.name.Domain(), said)
	}
	return f
}

// tokenFailure explains why no token was to be had.
func (r *Repository) tokenFailure(ctx context.Context, h docker.RegistryHost, err error) error {
	if s, ok := errors.AsType[remoteerrors.ErrUnexpectedStatus](err); ok {
		switch s.StatusCode {
		case http.StatusUnauthorized, http.StatusForbidden, http.StatusBadRequest:
			return r.unknown(h, "", nil)
		case http.StatusTooManyRequests:
			return &failure{again: true, status: s.StatusCode, err: errs.New(errs.Exhausted, "the token server of registry %s limits how much may be asked of it: try again later", h.Host)}
		}
		return &failure{again: s.StatusCode >= 500, status: s.StatusCode, err: errs.New(errs.Unavailable, "the token server of registry %s failed (%s)", h.Host, s.Status)}
	}
	if errors.Is(err, docker.ErrInvalidAuthorization) || errors.Is(err, errs.Anonymous) {
		return r.unknown(h, "", nil)
	}
	return r.unreachable(ctx, h, err)
}

// unreachable explains a connection that could not be made, broke or stalled.
func (r *Repository) unreachable(ctx context.Context, h docker.RegistryHost, err error) error {
	if _, ok := errors.AsType[*failure](err); ok {
		return err
	}
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errStall):
		return &failure{again: true, err: errs.New(errs.Timeout, "registry %s gave no byte for %s", h.Host, r.cfg.Stall)}
	case cause != nil:
		return cause
	}
	err = discreet(err)
	var unsure x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &unsure), errors.As(err, &name), errors.As(err, &invalid):
		return &failure{err: errs.New(errs.Unavailable, "the certificate of registry %s cannot be trusted: put its CA into %s/%s/, or allow insecure access: %w",
			h.Host, r.cfg.certDir(), r.name.Domain(), err)}
	case errors.As(err, &record), strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return &failure{err: errs.New(errs.Unavailable, "registry %s speaks plain HTTP, which is allowed on loopback only: allow insecure access if that is meant: %w", h.Host, err)}
	}
	return &failure{again: true, err: errs.New(errs.Unavailable, "registry %s: %w", h.Host, err)}
}

// discreet has an error name an address without its query. Registries send
// clients on to storage, by addresses that are tickets for whoever has them,
// and what an error says is read by many.
func discreet(err error) error {
	at, ok := errors.AsType[*url.Error](err)
	if !ok {
		return err
	}
	bare, _, has := strings.Cut(at.URL, "?")
	if !has {
		return err
	}
	return &reworded{err, strings.ReplaceAll(err.Error(), at.URL, bare+"?…")}
}

// reworded is an error that says something else.
type reworded struct {
	error
	text string
}

func (r *reworded) Error() string { return r.text }
func (r *reworded) Unwrap() error { return r.error }

func (c Config) certDir() string {
	if len(c.CertDirs) == 0 {
		return DefaultCertDirs()[0]
	}
	return c.CertDirs[0]
}

// said is what the registry itself says of an error, if it is readable.
func said(body string) string {
	var doc struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal([]byte(body), &doc) != nil || len(doc.Errors) == 0 {
		return ""
	}
	e := doc.Errors[0]
	if e.Message == "" {
		e.Message = e.Code
	}
	return ": " + strings.Map(printable, e.Message[:min(len(e.Message), 300)])
}

func printable(r rune) rune {
	if r < ' ' || r == 0x7f {
		return ' '
	}
	return r
}
