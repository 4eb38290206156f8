package builder

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
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

// Share is what the cache takes of the disk. Where buildkitd does not run, that
// is what it was when it was stopped: to ask is no use of it.
func (b *Builder) Share(ctx context.Context) (spec.DiskShare, error) {
	if b.running() != nil {
		b.remember(ctx)
	}
	var share spec.DiskShare
	text, err := os.ReadFile(b.shareFile())
	if errors.Is(err, fs.ErrNotExist) {
		return share, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &share)
	}
	return share, err
}

func shareOf(cache spec.BuildCache) spec.DiskShare {
	share := spec.DiskShare{Total: len(cache.Entries), Size: cache.Size, Reclaimable: cache.Reclaimable}
	for _, e := range cache.Entries {
		if e.InUse {
			share.Active++
		}
	}
	return share
}

func (b *Builder) shareFile() string { return filepath.Join(b.Dir, "share.json") }

// remember writes down what the cache takes, for when there is nobody to ask.
func (b *Builder) remember(ctx context.Context) {
	b.mu.Lock()
	stale := b.stale
	b.stale = false
	b.mu.Unlock()
	if !stale {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	programs, err := b.programs()
	if err != nil {
		return
	}
	entries, err := b.query(ctx, programs.client, []string{"du", "--format", "{{json .}}"})
	if clients, e := b.connections(); err != nil || e != nil || clients > 0 { // those who build now change it
		b.mu.Lock()
		b.stale = true
		b.mu.Unlock()
	}
	if err != nil {
		b.Log.DebugContext(ctx, "nobody knows what the build cache takes", "error", err)
		return
	}
	text, err := json.Marshal(shareOf(sum(entries)))
	if err == nil {
		err = os.WriteFile(b.shareFile()+".new", text, 0o600)
	}
	if err == nil {
		err = os.Rename(b.shareFile()+".new", b.shareFile())
	}
	if err != nil {
		b.Log.WarnContext(ctx, "what the build cache takes is not written down", "error", err)
	}
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

// ask asks a buildkitd that runs, or is started for it.
func (b *Builder) ask(ctx context.Context, args []string) ([]entry, error) {
	state, err := b.Start(ctx)
	if err != nil {
		return nil, err
	}
	return b.query(ctx, state.Client, args)
}

// query runs buildctl, and reads the entries that it tells of: one a value, or
// in lists.
func (b *Builder) query(ctx context.Context, buildctl string, args []string) ([]entry, error) {
	cmd := exec.CommandContext(ctx, buildctl, append([]string{"--addr", "unix://" + b.socket(), "--timeout", "30"}, args...)...)
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
