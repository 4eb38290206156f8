package lcfs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/erofs"
	"berth/image/object"
	"berth/image/tree"
	"berth/node/snapshot"
)

// Features are what this machine can do for the driver, in the folder where
// they were tried.
type Features struct {
	File        bool // EROFS mounts an image from a file …
	Loop        bool // … or from a loop device
	Data        bool // overlayfs finds bodies in a data-only layer
	PlainData   bool // … with metacopy off, so that uppers are complete
	Descriptors bool // overlayfs takes mounts that are attached nowhere
	Shift       bool // owners can be shifted
	Nested      bool // an overlay can stand on such an overlay
	NestedLoop  bool // … where images are on loop devices
	// Missing says in words what failed.
	Missing []string
}

// Usable says whether the driver works, on images in files or on loop devices.
func (f Features) Usable(loop bool) bool {
	if loop {
		return f.Loop && f.Data
	}
	return f.File && f.Data
}

// Why says what is missing; "" where nothing is.
func (f Features) Why() string { return strings.Join(f.Missing, "; ") }

// Probe tries everything once in a scratch folder in dir, which is made if
// need be. It fails only where it cannot try: what does not work is said in
// the result.
func Probe(ctx context.Context, dir string) (Features, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Features{}, fmt.Errorf("probe: %w", err)
	}
	scratch, err := os.MkdirTemp(dir, "probe-")
	if err != nil {
		return Features{}, fmt.Errorf("probe: %w", errs.Full(err))
	}
	p := &probe{dir: scratch}
	defer p.clean()
	if err := p.prepare(); err != nil {
		return Features{}, fmt.Errorf("probe: %w", errs.Full(err))
	}
	p.run(ctx)
	return p.found, ctx.Err()
}

const (
	probeBody  = "the body of a file, long enough to be none of the small ones"
	probeImage = "image.erofs"
)

type probe struct {
	dir   string
	found Features
}

func (p *probe) at(name string) string { return filepath.Join(p.dir, name) }

// prepare makes an image of one file, and its body as an object.
func (p *probe) prepare() error {
	for _, name := range []string{"objects", "layers/1/fs", "layers/1/work", "layers/2/fs", "layers/2/work", "image", "mnt", "nested/fs", "nested/work", "target"} {
		if err := os.MkdirAll(p.at(name), 0o755); err != nil {
			return err
		}
	}
	root := tree.NewFolder()
	d := tree.Digest(sha256.Sum256([]byte(probeBody)))
	root.Set("file", &tree.Node{Mode: unix.S_IFREG | 0o644, Size: int64(len(probeBody)), Object: d})
	inner := tree.NewFolder()
	inner.Set("g", &tree.Node{Mode: unix.S_IFREG | 0o644, Size: 1, Body: []byte("x")})
	root.Set("d", inner)
	var image bytes.Buffer
	if _, err := erofs.Write(&image, root); err != nil {
		return err
	}
	if err := os.WriteFile(p.at(probeImage), image.Bytes(), 0o600); err != nil {
		return err
	}
	body := filepath.Join(p.at("objects"), object.Name(d))
	if err := os.MkdirAll(filepath.Dir(body), 0o700); err != nil {
		return err
	}
	return os.WriteFile(body, []byte(probeBody), 0o600)
}

func (p *probe) clean() {
	for _, name := range []string{"target", "mnt", "image"} {
		for unix.Unmount(p.at(name), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) == nil {
		}
	}
	_ = os.RemoveAll(p.dir)
}

func (p *probe) miss(what string, err error) {
	p.found.Missing = append(p.found.Missing, fmt.Sprintf("%s: %v", what, err))
}

func (p *probe) run(ctx context.Context) {
	if err := unix.Setxattr(p.at("layers/1/fs"), "trusted.berth", []byte("y"), 0); err != nil {
		p.miss("trusted xattrs", err)
		return
	}
	_ = unix.Removexattr(p.at("layers/1/fs"), "trusted.berth")
	file, fileErr := mountImage(p.at(probeImage), false)
	if p.found.File = fileErr == nil; !p.found.File {
		p.miss("EROFS from a file", fileErr)
	} else {
		defer unix.Close(file)
	}
	loop, loopErr := mountImage(p.at(probeImage), true)
	if p.found.Loop = loopErr == nil; !p.found.Loop {
		p.miss("EROFS from a loop device", loopErr)
	} else {
		defer unix.Close(loop)
	}
	switch {
	case p.found.File:
		p.overlay(ctx, file, loop)
	case p.found.Loop:
		p.overlay(ctx, loop, loop)
	}
}

// overlay tries what overlayfs does with a mounted image.
func (p *probe) overlay(ctx context.Context, image, loop int) {
	err := p.try("1", overlayOptions(false), image, p.readBody)
	if p.found.PlainData = err == nil; err != nil {
		p.miss("bodies from a data-only layer without metacopy", err)
		err = p.try("1", overlayOptions(true), image, p.readBody)
	}
	p.found.Descriptors = err == nil
	if err != nil {
		p.miss("overlayfs on mounts that are attached nowhere", err)
		p.byNames(image)
		return
	}
	p.found.Data = true
	p.found.Nested = p.tryNested("an overlay on an overlay", image)
	if p.found.Loop {
		p.found.NestedLoop = p.tryNested("an overlay on an overlay, on a loop device", loop)
	}
	if err := p.tryShift(ctx); err != nil {
		p.miss("shifted owners", err)
	} else {
		p.found.Shift = true
	}
}

func (p *probe) tryNested(what string, image int) bool {
	err := p.try("1", overlayOptions(!p.found.PlainData), image, p.nest)
	if err != nil {
		p.miss(what, err)
	}
	return err == nil
}

// try mounts an overlay and calls fn with where it is.
func (p *probe) try(id string, options []string, image int, fn func(target string) error) error {
	mount, err := mountFS("overlay", 0, func(fsfd int) error {
		if err := unix.FsconfigSetFd(fsfd, "lowerdir+", image); err != nil {
			return fmt.Errorf("lower by descriptor: %w", err)
		}
		all := append([]string{"datadir+=" + p.at("objects"), "upperdir=" + p.at("layers/"+id+"/fs"), "workdir=" + p.at("layers/"+id+"/work")}, options...)
		for _, option := range all {
			if err := set(fsfd, option); err != nil {
				return err
			}
		}
		return nil
	}, unix.FsconfigCreate)
	if err != nil {
		return err
	}
	defer unix.Close(mount)
	if err := attach(mount, p.at("target")); err != nil {
		return err
	}
	defer func() { _ = unix.Unmount(p.at("target"), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) }()
	return fn(p.at("target"))
}

// readBody reads through the overlay, and writes.
func (p *probe) readBody(target string) error {
	body, err := os.ReadFile(filepath.Join(target, "file"))
	if err != nil {
		return err
	}
	if string(body) != probeBody {
		return errors.New("another body came out")
	}
	if err := os.Chmod(filepath.Join(target, "d/g"), 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(target, "file"), []byte("new"), 0o600)
}

// nest mounts an overlay whose lower is in the overlay.
func (p *probe) nest(target string) error {
	options := fmt.Sprintf("lowerdir=%s/d,upperdir=%s,workdir=%s", target, p.at("nested/fs"), p.at("nested/work"))
	if err := unix.Mount("overlay", p.at("mnt"), "overlay", 0, options); err != nil {
		return err
	}
	defer func() { _ = unix.Unmount(p.at("mnt"), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) }()
	_, err := os.ReadFile(filepath.Join(p.at("mnt"), "g"))
	return err
}

// byNames tries what older kernels have: everything mounted for all to see.
func (p *probe) byNames(image int) {
	if err := attach(image, p.at("image")); err != nil {
		p.miss("a visible image", err)
		return
	}
	options := fmt.Sprintf("lowerdir=%s::%s,upperdir=%s,workdir=%s,%s",
		p.at("image"), p.at("objects"), p.at("layers/1/fs"), p.at("layers/1/work"), strings.Join(overlayOptions(true), ","))
	if err := unix.Mount("overlay", p.at("target"), "overlay", 0, options); err != nil {
		p.miss("a data-only layer", err)
		return
	}
	defer func() { _ = unix.Unmount(p.at("target"), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) }()
	if err := p.readBody(p.at("target")); err != nil {
		p.miss("bodies from a data-only layer", err)
		return
	}
	p.found.Data = true
	if err := p.nest(p.at("target")); err != nil {
		p.miss("an overlay on an overlay", err)
	} else {
		p.found.Nested = true
	}
	p.found.NestedLoop = p.found.Nested && !p.found.File
}

// tryShift shifts the owners of an image and of an upper.
func (p *probe) tryShift(context.Context) error {
	maps := []snapshot.IDMap{{Container: 0, Host: 100_000, Size: 65_536}}
	var users snapshot.UserNamespaces
	defer users.Close()
	ns, err := users.Get(maps, maps)
	if err != nil {
		return err
	}
	image, err := mountImage(p.at(probeImage), !p.found.File)
	if err != nil {
		return err
	}
	defer unix.Close(image)
	folders, err := unix.OpenTree(unix.AT_FDCWD, p.at("layers"), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("open_tree", err)
	}
	sh := &shift{ns: ns, folders: folders}
	defer sh.close()
	for _, mount := range []int{image, folders} {
		if err := sh.apply(mount); err != nil {
			return err
		}
	}
	mount, err := mountFS("overlay", 0, func(fsfd int) error {
		if err := unix.FsconfigSetFd(fsfd, "lowerdir+", image); err != nil {
			return err
		}
		if err := sh.setFolder(fsfd, "upperdir", "2/fs"); err != nil {
			return err
		}
		return sh.setFolder(fsfd, "workdir", "2/work")
	}, func(fsfd int) error { return createShifted(fsfd, maps, maps) })
	if err == nil {
		_ = unix.Close(mount)
	}
	return err
}
