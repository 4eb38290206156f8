package lcfs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/tree"
	"berth/node/folder"
	"berth/node/snapshot"
)

// sectorSize is what stat counts blocks in.
const sectorSize = 512

// sharing counts what groups of chains take. Groups go by number.
type sharing struct {
	names  []string
	shares []snapshot.Share
	images map[string][]int // the groups that need an image
	deltas []string         // those of them that name objects
	single []int64          // bytes of objects that only this delta names
	marked []int            // by group: the object it was last counted for
	mark   int
}

// Shares says what groups of chains take of the disk, and what the store does.
func (s *Store) Shares(ctx context.Context, groups map[string][]snapshot.Key) (map[string]snapshot.Share, snapshot.Totals, error) {
	names := slices.Sorted(maps.Keys(groups))
	sh := &sharing{
		names: names, shares: make([]snapshot.Share, len(names)), marked: make([]int, len(names)),
		images: map[string][]int{},
	}
	needed := s.needed(names, groups)
	for rec, by := range needed {
		if err := s.shareLayer(ctx, sh, rec, by); err != nil {
			return nil, snapshot.Totals{}, fmt.Errorf("disk usage of layers: %w", err)
		}
	}
	for image, by := range sh.images {
		sh.count(disk(s.images.path(image))+disk(s.images.restPath(image))+disk(s.objectsPath(image)), by)
	}
	totals, err := s.totals(ctx, sh)
	if err != nil {
		return nil, totals, fmt.Errorf("disk usage of layers: %w", err)
	}
	shares := make(map[string]snapshot.Share, len(names))
	for i, name := range names {
		shares[name] = sh.shares[i]
	}
	return shares, totals, nil
}

// needed lists the layers that each group stands on, by the groups' numbers.
func (s *Store) needed(names []string, groups map[string][]snapshot.Key) map[*record][]int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	needed := map[*record][]int{}
	for group, name := range names {
		for _, key := range groups[name] {
			for rec := s.byKey[key]; rec != nil && !rec.claimed && rec.Kind == snapshot.KindCommitted; rec = s.byKey[rec.Parent] {
				by := needed[rec]
				if n := len(by); n > 0 && by[n-1] == group {
					break // and so are those below
				}
				needed[rec] = append(by, group)
			}
		}
	}
	return needed
}

// shareLayer counts what only this layer has, and notes its images.
func (s *Store) shareLayer(ctx context.Context, sh *sharing, rec *record, by []int) error {
	if rec.Recipe {
		sh.count(disk(s.recipe(rec.ID)), by)
	}
	if !rec.isSettled() {
		usage, err := s.Usage(ctx, rec.Key)
		if err != nil && s.isHere(rec) {
			return err
		}
		sh.count(usage.Size, by)
		return nil
	}
	if _, met := sh.images[rec.Delta]; !met || !slices.Contains(sh.deltas, rec.Delta) {
		sh.deltas = append(sh.deltas, rec.Delta)
	}
	for _, image := range slices.Compact([]string{rec.Delta, rec.Merged}) {
		if image != "" {
			sh.images[image] = union(sh.images[image], by)
		}
	}
	return nil
}

// isHere says whether the record's snapshot is still there.
func (s *Store) isHere(rec *record) bool {
	now, err := s.find(rec.Key)
	return err == nil && now.ID == rec.ID
}

func union(a, b []int) []int {
	if len(a) == 0 {
		return b
	}
	all := slices.Concat(a, b)
	slices.Sort(all)
	return slices.Compact(all)
}

// count adds bytes that some groups need.
func (sh *sharing) count(bytes int64, by []int) {
	for _, group := range by {
		if len(by) == 1 {
			sh.shares[group].Own += bytes
		} else {
			sh.shares[group].Shared += bytes
		}
	}
}

// countObject adds an object that some deltas name.
func (sh *sharing) countObject(bytes int64, named []naming) {
	if len(named) == 1 {
		sh.single[named[0].image] += bytes
		return
	}
	sh.mark++
	var by []int
	for _, n := range named {
		for _, group := range sh.images[sh.deltas[n.image]] {
			if sh.marked[group] != sh.mark {
				sh.marked[group] = sh.mark
				by = append(by, group)
			}
		}
	}
	sh.count(bytes, by)
}

// totals counts all that there is, and shares the objects out on the way: each
// is looked at once.
func (s *Store) totals(ctx context.Context, sh *sharing) (totals snapshot.Totals, err error) {
	sh.single = make([]int64, len(sh.deltas))
	linked := map[uint64]struct{}{} // inodes of objects that are files of folders, too
	err = s.eachPart(ctx, sh.deltas, 0, func(p part) error { return s.countObjects(ctx, sh, p, &totals, linked) })
	if err != nil {
		return totals, err
	}
	for n, bytes := range sh.single {
		sh.count(bytes, sh.images[sh.deltas[n]])
	}
	totals.Objects += disk(s.objects.Dir())
	totals.Inodes++
	for _, dir := range []string{"meta", "recipes", "mnt", "pending"} {
		bytes, inodes, err := diskOfFiles(filepath.Join(s.dir, dir))
		if err != nil {
			return totals, err
		}
		totals.Metadata += bytes
		totals.Inodes += inodes
	}
	return totals, s.countFolders(ctx, &totals, linked)
}

// countObjects counts the objects of one part.
func (s *Store) countObjects(ctx context.Context, sh *sharing, p part, totals *snapshot.Totals, linked map[uint64]struct{}) error {
	named := p.named
	for first := p.first; first < p.end; first++ {
		here, err := s.objects.List(byte(first))
		if err != nil {
			return err
		}
		if folder, found := s.objects.StatFolder(byte(first)); found {
			totals.Objects += folder.Blocks * sectorSize
			totals.Inodes++
		}
		for _, object := range here {
			st, err := s.objects.Stat(object)
			if errors.Is(err, unix.ENOENT) {
				continue // swept meanwhile
			}
			if err != nil {
				return err
			}
			bytes := st.Blocks * sectorSize
			totals.Objects += bytes
			totals.ObjectCount++
			totals.Inodes++
			if st.Nlink > 1 {
				linked[st.Ino] = struct{}{}
			}
			var by []naming
			if by, named = cut(named, object); len(by) > 0 {
				sh.countObject(bytes, by)
			}
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

// cut takes off named all that is not behind object, and returns what names
// object itself.
func cut(named []naming, object tree.Digest) (by, rest []naming) {
	at := 0
	for at < len(named) && named[at].object.Compare(object) < 0 {
		at++
	}
	end := at
	for end < len(named) && named[end].object == object {
		end++
	}
	return named[at:end], named[end:]
}

// countFolders counts the folders in layers/. Files that are objects, too, are
// counted there.
func (s *Store) countFolders(ctx context.Context, totals *snapshot.Totals, linked map[uint64]struct{}) error {
	active := map[string]bool{}
	for _, rec := range s.all() {
		if rec.Kind == snapshot.KindActive {
			active[rec.ID] = true
		}
	}
	totals.Layers += disk(s.layers)
	totals.Inodes++
	entries, err := os.ReadDir(s.layers)
	if err != nil {
		return err
	}
	for _, e := range entries {
		bytes, inodes, err := s.diskOfFolder(ctx, e.Name(), linked)
		if err != nil {
			return err
		}
		if active[e.Name()] {
			totals.Uppers += bytes
			totals.UpperInodes += inodes
		} else {
			totals.Layers += bytes
			totals.Inodes += inodes
		}
	}
	return nil
}

// diskOfFolder is the disk and the inodes that a folder in layers/ takes,
// without those in counted, to which it adds files of several names.
func (s *Store) diskOfFolder(ctx context.Context, id string, counted map[uint64]struct{}) (bytes, inodes int64, err error) {
	dirfd, err := openFolder(filepath.Join(s.layers, id))
	if errors.Is(err, os.ErrNotExist) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, err
	}
	defer unix.Close(dirfd)
	bytes, inodes = disk(filepath.Join(s.layers, id)), 1
	err = folder.Walk(ctx, dirfd, func(e *folder.Entry) error {
		if e.Stat.Nlink > 1 && !e.IsDir() {
			if _, met := counted[e.Stat.Ino]; met {
				return nil
			}
			counted[e.Stat.Ino] = struct{}{}
		}
		bytes += e.Stat.Blocks * sectorSize
		inodes++
		return nil
	})
	if errs.IsAny(err, unix.ENOENT) {
		err = nil // deleted meanwhile
	}
	return bytes, inodes, err
}

// diskOfFiles is the disk and the inodes that a folder and the files in it take.
// Mounts in it are not of this file system.
func diskOfFiles(dir string) (bytes, inodes int64, err error) {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if !e.IsDir() {
			bytes += disk(filepath.Join(dir, e.Name()))
			inodes++
		}
	}
	return bytes + disk(dir), inodes + 1, err
}

// disk is what one file or folder takes of the disk; 0 if it is not there.
func disk(path string) int64 {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return 0
	}
	return st.Blocks * sectorSize
}
