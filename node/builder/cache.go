package builder

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"berth/base/errs"
	"berth/spec"
)

// entry is an entry of the cache as buildctl tells of it.
type entry struct {
	ID          string     `json:"id"`
	Mutable     bool       `json:"mutable"`
	InUse       bool       `json:"inUse"`
	Size        int64      `json:"size"`
	CreatedAt   time.Time  `json:"createdAt"`
	LastUsedAt  *time.Time `json:"lastUsedAt"`
	UsageCount  int        `json:"usageCount"`
	Parents     []string   `json:"parents"`
	Description string     `json:"description"`
	RecordType  string     `json:"recordType"`
	Shared      bool       `json:"shared"`
}

func (e entry) spec() spec.BuildCacheEntry {
	out := spec.BuildCacheEntry{
		ID: e.ID, Parents: e.Parents, Type: e.RecordType, Description: e.Description, Created: e.CreatedAt,
		UsageCount: e.UsageCount, Size: e.Size, InUse: e.InUse, Shared: e.Shared, Mutable: e.Mutable,
	}
	if e.LastUsedAt != nil {
		out.LastUsed = *e.LastUsedAt
	}
	return out
}

// Cache lists what builds have left, all of it or what fits BuildKit's
// filters. It starts buildkitd if need be.
func (b *Builder) Cache(ctx context.Context, filters []string) (spec.BuildCache, error) {
	args := []string{"du", "--format", "{{json .}}"}
	for _, filter := range filters {
		args = append(args, "--filter", filter)
	}
	entries, err := b.ask(ctx, args)
	if err != nil {
		return spec.BuildCache{}, fmt.Errorf("read the build cache: %w", err)
	}
	return sum(entries), nil
}

// Prune removes what no build that runs needs, as far as asked for. It starts
// buildkitd if need be.
func (b *Builder) Prune(ctx context.Context, request spec.BuildCachePrune) (spec.BuildCache, error) {
	args := []string{"prune", "--format", "{{json .}}"}
	if request.All {
		args = append(args, "--all")
	}
	if request.Unused > 0 {
		args = append(args, "--keep-duration", (time.Duration(request.Unused) * time.Second).String())
	}
	if request.Keep > 0 {
		megabytes := strconv.FormatFloat(float64(request.Keep)/1e6, 'f', -1, 64)
		args = append(args, "--keep-storage", megabytes, "--keep-storage-min", megabytes)
	}
	for _, filter := range request.Filter {
		args = append(args, "--filter", filter)
	}
	entries, err := b.ask(ctx, args)
	if err != nil {
		return spec.BuildCache{}, fmt.Errorf("prune the build cache: %w", err)
	}
	return sum(entries), nil
}

// ask runs buildctl, and reads the entries that it tells of: one a value, or
// in lists.
func (b *Builder) ask(ctx context.Context, args []string) ([]entry, error) {
	state, err := b.Start(ctx)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, state.Client, append([]string{"--addr", "unix://" + state.Socket, "--timeout", "30"}, args...)...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if exit, failed := errors.AsType[*exec.ExitError](err); failed {
		why := strings.TrimPrefix(strings.TrimSpace(said.String()), "error: ")
		return nil, errs.New(errs.Unavailable, "%s (%s)", why, exit.ProcessState)
	}
	if err != nil {
		return nil, err
	}
	return decode(out)
}

func decode(text []byte) ([]entry, error) {
	var all []entry
	in := json.NewDecoder(bytes.NewReader(text))
	for {
		var raw json.RawMessage
		err := in.Decode(&raw)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err == nil && raw[0] == '[' {
			var list []entry
			err = json.Unmarshal(raw, &list)
			all = append(all, list...)
		} else if err == nil && string(raw) != "null" {
			var one entry
			err = json.Unmarshal(raw, &one)
			all = append(all, one)
		}
		if err != nil {
			return nil, errs.New(errs.Internal, "buildctl says what nobody understands: %w", err)
		}
	}
}

func sum(entries []entry) spec.BuildCache {
	cache := spec.BuildCache{Entries: []spec.BuildCacheEntry{}}
	for _, e := range entries {
		cache.Entries = append(cache.Entries, e.spec())
		if e.Shared {
			continue
		}
		cache.Size += e.Size
		if !e.InUse {
			cache.Reclaimable += e.Size
		}
	}
	return cache
}
