package stats

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// DeviceUsage is what went to and from a block device.
type DeviceUsage struct {
	Major, Minor                         uint64
	ReadBytes, WriteBytes, DiscardBytes  uint64
	Reads, Writes, Discards              uint64
	SyncBytes, AsyncBytes, Syncs, Asyncs uint64 // of version 1
}

func (d *DeviceUsage) addBytes(kind []byte, n uint64) {
	d.add(kind, n, &d.ReadBytes, &d.WriteBytes, &d.DiscardBytes, &d.SyncBytes, &d.AsyncBytes)
}

func (d *DeviceUsage) addMoves(kind []byte, n uint64) {
	d.add(kind, n, &d.Reads, &d.Writes, &d.Discards, &d.Syncs, &d.Asyncs)
}

func (*DeviceUsage) add(kind []byte, n uint64, read, write, discard, sync, async *uint64) {
	switch string(kind) {
	case "Read":
		*read += n
	case "Write":
		*write += n
	case "Discard":
		*discard += n
	case "Sync":
		*sync += n
	case "Async":
		*async += n
	}
}

// devicesV1 adds lines such as "8:0 Read 4096" to the list.
func devicesV1(text []byte, list []DeviceUsage, add func(*DeviceUsage, []byte, uint64)) []DeviceUsage {
	for line := range bytes.Lines(text) {
		device, rest, _ := bytes.Cut(line, []byte(" "))
		kind, count, _ := bytes.Cut(rest, []byte(" "))
		major, minor, ok := deviceNumber(device)
		n, isNumber := digits(count)
		if !ok || !isNumber {
			continue // the sum of all
		}
		list = withDevice(list, major, minor)
		for i := range list {
			if list[i].Major == major && list[i].Minor == minor {
				add(&list[i], kind, n)
			}
		}
	}
	return list
}

func withDevice(list []DeviceUsage, major, minor uint64) []DeviceUsage {
	for _, d := range list {
		if d.Major == major && d.Minor == minor {
			return list
		}
	}
	return append(list, DeviceUsage{Major: major, Minor: minor})
}

// devicesV2 reads lines such as "8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0
// dios=0".
func devicesV2(text []byte) (list []DeviceUsage) {
	for line := range bytes.Lines(text) {
		device, rest, _ := bytes.Cut(line, []byte(" "))
		var d DeviceUsage
		var ok bool
		if d.Major, d.Minor, ok = deviceNumber(device); !ok {
			continue
		}
		for entry := range bytes.FieldsSeq(rest) {
			name, value, _ := bytes.Cut(entry, []byte("="))
			n, _ := digits(value)
			switch string(name) {
			case "rbytes":
				d.ReadBytes = n
			case "wbytes":
				d.WriteBytes = n
			case "dbytes":
				d.DiscardBytes = n
			case "rios":
				d.Reads = n
			case "wios":
				d.Writes = n
			case "dios":
				d.Discards = n
			}
		}
		list = append(list, d)
	}
	return list
}

func deviceNumber(text []byte) (major, minor uint64, ok bool) {
	a, b, _ := bytes.Cut(bytes.TrimSpace(text), []byte(":"))
	major, ok = digits(a)
	minor, also := digits(b)
	return major, minor, ok && also
}

// FileSystem is how full a file system is.
type FileSystem struct {
	Device             string // such as /dev/sda1; what is mounted where there is none
	Major, Minor       uint64
	Size, Free         uint64 // bytes
	Inodes, InodesFree uint64
}

// FileSystem tells of the one that path is on.
func (r *Reader) FileSystem(path string) (FileSystem, error) {
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := errors.Join(unix.Stat(path, &st), unix.Statfs(path, &fs)); err != nil {
		return FileSystem{}, fmt.Errorf("file system of %s: %w", path, err)
	}
	size := uint64(fs.Bsize) //nolint:gosec // no block has a negative size
	f := FileSystem{
		Major: uint64(unix.Major(st.Dev)), Minor: uint64(unix.Minor(st.Dev)),
		Size: fs.Blocks * size, Free: fs.Bavail * size, Inodes: fs.Files, InodesFree: fs.Ffree,
	}
	f.Device = r.DeviceName(f.Major, f.Minor)
	return f, nil
}

// DeviceName is what a block device is called, or the source of a mount that
// stands on none; "major:minor" where it is neither.
func (r *Reader) DeviceName(major, minor uint64) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if name, ok := r.devices[device{major, minor}]; ok {
		return name
	}
	name := deviceName(fmt.Sprintf("%d:%d", major, minor), r.proc)
	if r.devices == nil || len(r.devices) > 256 { // of containers that come and go
		r.devices = map[device]string{}
	}
	r.devices[device{major, minor}] = name
	return name
}

func deviceName(number, proc string) string {
	f := newFiles()
	for line := range bytes.Lines(f.read("/sys/dev/block/" + number + "/uevent")) {
		if name, ok := bytes.CutPrefix(line, []byte("DEVNAME=")); ok {
			return "/dev/" + string(bytes.TrimSpace(name))
		}
	}
	// "36 35 98:0 / /mnt rw,noatime - ext3 /dev/root rw"
	for line := range bytes.Lines(f.read(proc + "/self/mountinfo")) {
		fields := bytes.Fields(line)
		if i := slices.IndexFunc(fields, func(b []byte) bool { return string(b) == "-" }); i > 2 && i+2 < len(fields) && string(fields[2]) == number {
			return string(fields[i+2])
		}
	}
	return number
}
