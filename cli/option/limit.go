package option

import (
	"math"
	"math/big"
	"path"
	"strconv"
	"strings"

	"github.com/docker/go-units"

	"berth/base/errs"
	"berth/spec"
)

// Bytes reads a size such as 64m; powers of 1024. Empty is 0.
func Bytes(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	n, err := units.RAMInBytes(text)
	if err != nil {
		return 0, errs.New(errs.Invalid, "size %q: expected a number with b, k, m or g", text)
	}
	return n, nil
}

// SwapBytes is Bytes that takes -1 too, for no limit.
func SwapBytes(text string) (int64, error) {
	if text == "-1" {
		return -1, nil
	}
	return Bytes(text)
}

// NanoCPUs reads a number of processors such as 1.5.
func NanoCPUs(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	if len(text) > 32 || strings.ContainsAny(text, "eEpP/_") { // 1e999999 would take for ever
		return 0, errs.New(errs.Invalid, "cpus %q: expected a number such as 1.5", text)
	}
	cpus, ok := new(big.Rat).SetString(text)
	if !ok || cpus.Sign() < 0 {
		return 0, errs.New(errs.Invalid, "cpus %q: expected a number such as 1.5", text)
	}
	nano := cpus.Mul(cpus, big.NewRat(1e9, 1))
	if !nano.IsInt() || !nano.Num().IsInt64() {
		return 0, errs.New(errs.Invalid, "cpus %q: at most nine digits behind the point", text)
	}
	return nano.Num().Int64(), nil
}

// Rlimit reads name=soft[:hard]; -1 is no limit.
func Rlimit(text string) (spec.Rlimit, error) {
	limit, err := units.ParseUlimit(text)
	if err != nil {
		return spec.Rlimit{}, errs.New(errs.Invalid, "ulimit %q: %w", text, err)
	}
	return spec.Rlimit{Name: limit.Name, Soft: unlimited(limit.Soft), Hard: unlimited(limit.Hard)}, nil
}

func unlimited(n int64) uint64 {
	if n == -1 {
		return math.MaxUint64
	}
	return uint64(n)
}

// Device reads path[:target][:permissions].
func Device(text string) (spec.Device, error) {
	parts := strings.Split(text, ":")
	device := spec.Device{Path: parts[0], Permissions: "rwm"}
	switch {
	case len(parts) == 3:
		device.Target, device.Permissions = parts[1], parts[2]
	case len(parts) == 2 && permissions(parts[1]):
		device.Permissions = parts[1]
	case len(parts) == 2:
		device.Target = parts[1]
	case len(parts) > 3:
		return spec.Device{}, errs.New(errs.Invalid, "device %q: expected path[:target][:rwm]", text)
	}
	if !permissions(device.Permissions) {
		return spec.Device{}, errs.New(errs.Invalid, "device %q: permissions are made of r, w and m", text)
	}
	if !path.IsAbs(device.Path) || device.Target != "" && !path.IsAbs(device.Target) {
		return spec.Device{}, errs.New(errs.Invalid, "device %q: paths must be absolute", text)
	}
	return device, nil
}

func permissions(text string) bool {
	return text != "" && len(text) <= 3 && strings.Trim(text, "rwm") == ""
}

// BytesPerSecond reads path:rate with a size such as 1mb.
func BytesPerSecond(text string) (spec.DeviceThrottle, error) {
	return throttle(text, func(rate string) (uint64, error) {
		n, err := units.RAMInBytes(rate)
		if err == nil && n < 0 {
			err = errs.New(errs.Invalid, "negative")
		}
		return uint64(n), err
	})
}

// PerSecond reads path:rate with a plain number.
func PerSecond(text string) (spec.DeviceThrottle, error) {
	return throttle(text, func(rate string) (uint64, error) { return strconv.ParseUint(rate, 10, 64) })
}

func throttle(text string, number func(string) (uint64, error)) (spec.DeviceThrottle, error) {
	at := strings.LastIndexByte(text, ':')
	if at < 0 || !path.IsAbs(text[:at]) {
		return spec.DeviceThrottle{}, errs.New(errs.Invalid, "%q: expected /dev/name:rate", text)
	}
	rate, err := number(text[at+1:])
	if err != nil {
		return spec.DeviceThrottle{}, errs.New(errs.Invalid, "%q: %q is no rate", text, text[at+1:])
	}
	return spec.DeviceThrottle{Path: text[:at], Rate: rate}, nil
}
