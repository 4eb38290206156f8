package lease

import (
	"strings"
	"time"

	"berth/base/errs"
)

// The labels that say what to keep are containerd's.
const (
	gcPrefix = "containerd.io/gc."
	gcRoot   = gcPrefix + "root"
	gcFlat   = gcPrefix + "flat"
	gcExpire = gcPrefix + "expire"
	gcRef    = gcPrefix + "ref."
	gcBack   = gcPrefix + "bref."
	gcCond   = gcPrefix + "cond.snapshot"
	gcUsed   = gcPrefix + "cond.value-usedat"
)

// maxLabel is what a label's name and value may have together.
const maxLabel = 4096

// CheckLabels is Invalid where a label is too long.
func CheckLabels(labels map[string]string) error {
	for name, value := range labels {
		if n := len(name) + len(value); n > maxLabel {
			return errs.New(errs.Invalid, "label key and value length (%d bytes) greater than maximum size (%d bytes), key: %.64s", n, maxLabel, name)
		}
	}
	return nil
}

// WithoutEmpty copies labels. One without a value is none.
func WithoutEmpty(labels map[string]string) map[string]string {
	kept := make(map[string]string, len(labels))
	for name, value := range labels {
		if value != "" {
			kept[name] = value
		}
	}
	if len(kept) == 0 {
		return nil
	}
	return kept
}

// References lists what labels say that their bearer refers to.
func References(labels map[string]string) []Resource {
	var all []Resource
	for name, value := range labels {
		if r, ok := reference(name, gcRef, value); ok {
			all = append(all, r)
		}
	}
	return all
}

// referrers lists what labels say that refers to their bearer.
func referrers(labels map[string]string) []Resource {
	var all []Resource
	for name, value := range labels {
		if r, ok := reference(name, gcBack, value); ok {
			all = append(all, r)
		}
	}
	return all
}

// reference reads one label: a kind, and then anything behind a dot or a
// slash; behind snapshot stands the snapshotter.
func reference(name, prefix, value string) (Resource, bool) {
	rest, ok := strings.CutPrefix(name, prefix)
	if !ok || value == "" {
		return Resource{}, false
	}
	kind, after := rest, ""
	if at := strings.IndexAny(rest, "./"); at >= 0 {
		kind, after = rest[:at], rest[at+1:]
	}
	switch kind {
	case "content":
		return Resource{Content, value}, true
	case "image":
		return Resource{Images, value}, true
	case "container":
		return Resource{Containers, value}, prefix == gcBack
	case "snapshot":
		snapshotter, _, _ := strings.Cut(after, "/")
		return Resource{Snapshots(snapshotter), value}, snapshotter != ""
	}
	return Resource{}, false
}

// Expires says when labels let their bearer go. What is no time is no label.
func Expires(labels map[string]string) (time.Time, bool) {
	text, ok := labels[gcExpire]
	if !ok {
		return time.Time{}, false
	}
	at, err := time.Parse(time.RFC3339, text)
	return at, err == nil
}

// isRoot: the bearer is kept whatever refers to it. Only the name of the label
// counts, also its beginning.
func isRoot(labels map[string]string) bool {
	for name := range labels {
		if strings.HasPrefix(name, gcRoot) {
			return true
		}
	}
	return false
}

func isFlat(labels map[string]string) bool {
	_, ok := labels[gcFlat]
	return ok
}

// condition is a reference to a snapshot that counts while one of the times at
// which that says it was used fits.
type condition struct {
	to   Resource
	fits func(ago time.Duration) bool
}

// conditions reads labels such as gc.cond.snapshot.overlayfs=usedat<24h|key,
// with several conditions before the key, of which one has to hold.
func conditions(labels map[string]string) []condition {
	var all []condition
	for name, value := range labels {
		rest, ok := strings.CutPrefix(name, gcCond)
		tests, key, some := strings.Cut(value, "|")
		snapshotter, _, _ := strings.Cut(strings.TrimLeft(rest, "./"), "/")
		if !ok || !some || snapshotter == "" {
			continue
		}
		for test := range strings.SplitSeq(tests, ",") {
			if fits := usedAt(test); fits != nil {
				all = append(all, condition{Resource{Snapshots(snapshotter), key}, fits})
			}
		}
	}
	return all
}

// usedAt reads one condition; nil where it is none.
func usedAt(test string) func(ago time.Duration) bool {
	if text, ok := strings.CutPrefix(test, "usedat<"); ok {
		if d, err := time.ParseDuration(text); err == nil {
			return func(ago time.Duration) bool { return ago < d }
		}
	}
	if text, ok := strings.CutPrefix(test, "usedat>"); ok {
		if d, err := time.ParseDuration(text); err == nil {
			return func(ago time.Duration) bool { return ago > d }
		}
	}
	return nil
}

// used lists when labels say that a snapshot was used.
func used(labels map[string]string) []time.Time {
	var all []time.Time
	for name, value := range labels {
		if !strings.HasPrefix(name, gcUsed) {
			continue
		}
		if at, err := time.Parse(time.RFC3339, value); err == nil {
			all = append(all, at)
		}
	}
	return all
}
