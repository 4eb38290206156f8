package lcfs

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"berth/image/tree"
)

// maxImages bounds how many images stay mounted for the next who wants them.
const maxImages = 128

// images keeps mounts of EROFS images that are attached nowhere. All overlays
// on an image share one, and so its inodes and names in the kernel's caches.
type images struct {
	dir  string
	loop bool

	mu     sync.Mutex
	mounts map[string]int
	order  []string // least recently used first
	used   map[string]time.Time

	// waking is held while a plain file is made, mounted or deleted. It is
	// taken after mu.
	waking sync.Mutex
}

func (im *images) init(dir string, loop bool) {
	im.dir, im.loop, im.mounts, im.used = dir, loop, map[string]int{}, map[string]time.Time{}
}

func (im *images) path(name string) string { return im.dir + "/" + name + ".erofs" }

// set makes the image the next lower of an overlay.
func (im *images) set(fsfd int, name string) error {
	im.mu.Lock()
	defer im.mu.Unlock()
	mount, err := im.getLocked(name)
	if err != nil {
		return err
	}
	return unix.FsconfigSetFd(fsfd, "lowerdir+", mount)
}

// clone returns a mount of the image that is the caller's alone. Where the
// kernel can it shares all else with the others.
func (im *images) clone(name string) (int, error) {
	im.mu.Lock()
	defer im.mu.Unlock()
	mount, err := im.getLocked(name)
	if err != nil {
		return -1, err
	}
	fd, err := unix.OpenTree(mount, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return im.mount(name)
	}
	return fd, nil
}

// getLocked returns the mounted image. mu is held.
func (im *images) getLocked(name string) (int, error) {
	im.used[name] = time.Now()
	mount, ok := im.mounts[name]
	if !ok {
		var err error
		if mount, err = im.mount(name); err != nil {
			return -1, err
		}
		if len(im.order) == maxImages {
			im.forgetLocked(im.order[0])
		}
		im.mounts[name] = mount
	} else {
		im.order = slices.DeleteFunc(im.order, func(other string) bool { return other == name })
	}
	im.order = append(im.order, name)
	return mount, nil
}

// usedLast is when the image was last wanted for a mount.
func (im *images) usedLast(name string) time.Time {
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.used[name]
}

// mount makes a mount of the image for one user alone.
func (im *images) mount(name string) (int, error) {
	im.waking.Lock()
	defer im.waking.Unlock()
	if err := im.wake(name); err != nil {
		return -1, fmt.Errorf("image %.16s: %w", name, err)
	}
	path := im.path(name)
	if len(path) > 250 {
		dir, err := openFolder(im.dir)
		if err != nil {
			return -1, err
		}
		defer unix.Close(dir)
		path = fmt.Sprintf("/proc/self/fd/%d/%s.erofs", dir, name)
	}
	mount, err := mountImage(path, im.loop)
	if err != nil {
		return -1, fmt.Errorf("image %.16s: %w", name, err)
	}
	return mount, nil
}

// forget lets go of an image; mounts that stand on it keep it.
func (im *images) forget(name string) {
	im.mu.Lock()
	defer im.mu.Unlock()
	delete(im.used, name)
	if _, ok := im.mounts[name]; ok {
		im.forgetLocked(name)
	}
}

func (im *images) forgetLocked(name string) {
	_ = unix.Close(im.mounts[name])
	delete(im.mounts, name)
	im.order = slices.DeleteFunc(im.order, func(other string) bool { return other == name })
}

func (im *images) close() {
	im.mu.Lock()
	defer im.mu.Unlock()
	for _, mount := range im.mounts {
		_ = unix.Close(mount)
	}
	im.mounts, im.order = map[string]int{}, nil
}

// isImage says whether a file in meta/ has the name of an image, and which.
func isImage(file string) (name string, ok bool) {
	name, ok = strings.CutSuffix(strings.TrimSuffix(file, restSuffix), ".erofs")
	return name, ok && len(name) == 2*len(tree.Digest{})
}
