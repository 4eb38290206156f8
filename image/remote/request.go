package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"

	"berth/base/errs"
)

// maxPause bounds the pause between attempts, and so which Retry-After we
// are ready to sit out.
const maxPause = 30 * time.Second

// hashRate is how many bytes a second even a slow registry hashes.
const hashRate = 16 << 20

// errStall is the cause of a context that ended for lack of progress.
var errStall = errors.New("no byte came in time")

// request is one question to a registry, ready to be asked of several hosts
// and several times.
type request struct {
	method string
	path   []string // below /v2/<repository>/
	url    *url.URL // instead of path, where the registry gave one
	query  url.Values
	header http.Header
	body   func() (io.ReadCloser, error)
	size   int64
	ok     []int // the statuses that mean success
	digest int64 // bytes that the registry will hash before it answers
}

// ask sends q to each host in turn until one answers well. The answer's
// body fails with errs.Timeout when it stalls.
func (r *Repository) ask(ctx context.Context, hosts []docker.RegistryHost, q request) (*http.Response, docker.RegistryHost, error) {
	ctx = r.scoped(ctx)
	var first error
	for i, h := range hosts {
		attempts := r.cfg.Attempts
		if i < len(hosts)-1 {
			attempts = 1 // the next host is the better second attempt
		}
		resp, err := r.persist(ctx, h, q, attempts)
		if err == nil {
			return resp, h, nil
		}
		if ctx.Err() != nil {
			return nil, h, context.Cause(ctx)
		}
		if i < len(hosts)-1 {
			r.cfg.Log.DebugContext(ctx, "mirror failed", "host", h.Host, "error", err)
		}
		if first == nil || i == len(hosts)-1 {
			first = err // the registry itself has the last word
		}
	}
	if first == nil {
		first = errs.New(errs.Unsupported, "the hosts.toml of %s names no host that may do this", r.name.Domain())
	}
	return nil, docker.RegistryHost{}, first
}

// persist asks one host until it answers, attempts are used up or it is
// clear that asking again is no use.
func (r *Repository) persist(ctx context.Context, h docker.RegistryHost, q request, attempts int) (*http.Response, error) {
	for attempt := 1; ; attempt++ {
		resp, err := r.once(ctx, h, q)
		if err == nil {
			return resp, nil
		}
		f, ok := errors.AsType[*failure](err)
		if !ok || !f.again || attempt >= attempts || ctx.Err() != nil {
			return nil, err
		}
		if err := r.pause(ctx, err, attempt, f.after); err != nil {
			return nil, err
		}
	}
}

// pause waits before attempt+1, for as long as the registry asked for or a
// time that doubles, unless that is longer than anyone would wait.
func (r *Repository) pause(ctx context.Context, why error, attempt int, after time.Duration) error {
	wait := min(r.cfg.Backoff<<(attempt-1), maxPause)
	wait += rand.N(wait/2 + 1)
	if after > maxPause {
		return why
	}
	wait = max(wait, after)
	if r.access.Retrying != nil {
		r.access.Retrying(why, wait)
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// once asks one host once, which may take several requests until it knows
// who we are.
func (r *Repository) once(ctx context.Context, h docker.RegistryHost, q request) (*http.Response, error) {
	var refused []*http.Response
	for {
		resp, err := r.send(ctx, h, q)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusUnauthorized || h.Authorizer == nil || len(refused) == 4 {
			return r.judge(h, q, resp)
		}
		refused = append(refused, resp)
		said := drain(resp)
		if err := h.Authorizer.AddResponses(ctx, refused); err != nil {
			return nil, r.unknown(h, said, err)
		}
		if again := r.access.Auth == nil && len(refused) > 2; again {
			return nil, r.unknown(h, said, nil)
		}
	}
}

// send sends one HTTP request, watched for stalls until its body is closed.
func (r *Repository) send(ctx context.Context, h docker.RegistryHost, q request) (*http.Response, error) {
	ctx, w := watch(ctx, r.cfg.Stall+time.Duration(q.digest/hashRate)*time.Second)
	req, err := r.build(ctx, w, h, q)
	if err != nil {
		w.end()
		return nil, err
	}
	if h.Authorizer != nil {
		if err := h.Authorizer.Authorize(ctx, req); err != nil {
			err = r.tokenFailure(ctx, h, err) // before the end, which hides the cause
			w.end()
			return nil, err
		}
	}
	resp, err := h.Client.Do(req)
	w.rest()
	if err != nil {
		err = r.unreachable(ctx, h, err)
		w.end()
		return nil, err
	}
	resp.Body = &watchedBody{ReadCloser: resp.Body, watch: w, repo: r, host: h, ctx: ctx}
	return resp, nil
}

func (r *Repository) build(ctx context.Context, w *watcher, h docker.RegistryHost, q request) (*http.Request, error) {
	u := q.url
	if u == nil {
		u = &url.URL{Scheme: h.Scheme, Host: h.Host, Path: path.Join(append([]string{h.Path, r.name.Path()}, q.path...)...)}
		if len(q.path) > 0 && q.path[len(q.path)-1] == "" {
			u.Path += "/"
		}
		query := url.Values{}
		maps.Copy(query, q.query)
		if h.Host != r.upstream() && h.Host != r.name.Domain() {
			query.Set("ns", r.name.Domain()) // a mirror must know whose repository is meant
		}
		u.RawQuery = query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, q.method, u.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("registry %s: %w", h.Host, err)
	}
	for _, from := range []http.Header{h.Header, q.header} {
		for k, v := range from {
			req.Header[http.CanonicalHeaderKey(k)] = v
		}
	}
	req.Header.Set("User-Agent", r.cfg.UserAgent)
	if q.body != nil && q.size > 0 { // a zero length would read as unknown
		req.ContentLength = q.size
		req.GetBody = func() (io.ReadCloser, error) {
			b, err := q.body()
			if err != nil {
				return nil, err
			}
			return &watchedUpload{ReadCloser: b, watch: w}, nil
		}
		if req.Body, err = req.GetBody(); err != nil {
			return nil, err
		}
	}
	return req, nil
}

// drain reads the little that an error answer says and closes it.
func drain(resp *http.Response) string {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 8<<10)) // a cut answer still says something
	resp.Body.Close()
	return string(b)
}

// retryAfter reads the header: seconds, or a date.
func retryAfter(resp *http.Response) time.Duration {
	v := resp.Header.Get("Retry-After")
	if s, err := strconv.Atoi(v); err == nil && s >= 0 {
		return time.Duration(s) * time.Second
	}
	if at, err := http.ParseTime(v); err == nil {
		return max(0, time.Until(at))
	}
	return 0
}
