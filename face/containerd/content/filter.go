package content

import (
	"strings"

	"github.com/containerd/containerd/v2/pkg/filters"

	"berth/base/errs"
	"berth/image/catalog"
	"berth/node/content"
	"berth/node/lease"
)

// filter makes one test of filters in containerd's language, of which one has
// to fit; none fits all. fields answers for the path of a field.
func filter[T any](all []string, fields func(T, []string) (string, bool)) (func(T) bool, error) {
	parsed, err := filters.ParseAll(all...)
	if err != nil {
		return nil, errs.New(errs.Invalid, "%w", err)
	}
	return func(of T) bool {
		return parsed.Match(filters.AdapterFunc(func(path []string) (string, bool) {
			if len(path) == 0 {
				return "", false
			}
			return fields(of, path)
		}))
	}, nil
}

func infoFields(i content.Info, path []string) (string, bool) {
	switch path[0] {
	case "digest":
		return i.Digest.String(), true
	case "labels":
		return labelField(i.Labels, path)
	}
	return "", false
}

func statusFields(st content.Status, path []string) (string, bool) {
	if path[0] == "ref" {
		return st.Ref, true
	}
	return "", false
}

func leaseFields(l lease.Lease, path []string) (string, bool) {
	switch path[0] {
	case "id":
		return l.ID, l.ID != ""
	case "labels":
		return labelField(l.Labels, path)
	}
	return "", false
}

func nameFields(r catalog.Record, path []string) (string, bool) {
	switch path[0] {
	case "name":
		return r.Name, r.Name != ""
	case "target":
		if len(path) < 2 {
			return "", false
		}
		switch path[1] {
		case "digest":
			return r.Target.Digest.String(), r.Target.Digest != ""
		case "mediatype":
			return r.Target.MediaType, r.Target.MediaType != ""
		}
	case "labels":
		return labelField(r.Labels, path)
	case "annotations":
		return labelField(r.Target.Annotations, path)
	}
	return "", false
}

// labelField finds a label whose name may have dots.
func labelField(labels map[string]string, path []string) (string, bool) {
	value, ok := labels[strings.Join(path[1:], ".")]
	return value, ok
}
