package event

import (
	"slices"
	"strings"

	"berth/base/errs"
	"berth/spec"
)

// match turns a filter into a question. As everywhere, a value of every key
// must fit; of labels, all must.
func match(filter spec.Filter) (func(spec.Event) bool, error) {
	for key := range filter {
		if test(key) == nil {
			return nil, errs.New(errs.Invalid, "events cannot be filtered by %q", key)
		}
	}
	return func(e spec.Event) bool {
		for key, values := range filter {
			fits := func(value string) bool { return test(key)(e, value) }
			if key == "label" {
				if slices.ContainsFunc(values, func(v string) bool { return !fits(v) }) {
					return false
				}
			} else if len(values) > 0 && !slices.ContainsFunc(values, fits) {
				return false
			}
		}
		return true
	}, nil
}

// test is how an event is held against one value of a filter's key; nil for
// a key that is not known.
func test(key string) func(e spec.Event, value string) bool {
	switch key {
	case "type":
		return func(e spec.Event, value string) bool { return e.Type == value }
	case "event", "action":
		return func(e spec.Event, value string) bool {
			verb, _, _ := strings.Cut(e.Action, ":") // "health_status: healthy" is a health_status
			return e.Action == value || verb == value
		}
	case "container", "network", "volume", "node", "image":
		return func(e spec.Event, value string) bool { return about(e, key, value) }
	case "pod":
		return aboutPod
	case "id":
		return func(e spec.Event, value string) bool { return strings.HasPrefix(e.ID, value) }
	case "name":
		return func(e spec.Event, value string) bool { return e.Attributes["name"] == value }
	case "label":
		return func(e spec.Event, value string) bool {
			label, want, exact := strings.Cut(value, "=")
			got, found := e.Attributes[label]
			return found && (!exact || got == want)
		}
	}
	return nil
}

// about is whether an event is about the thing of that kind which value
// names: as the one it happened to, or as one that took part and stands in
// the attributes.
func about(e spec.Event, kind, value string) bool {
	if value == "" {
		return false
	}
	if e.Type == kind {
		id := strings.TrimPrefix(e.ID, "sha256:")
		return strings.HasPrefix(id, strings.TrimPrefix(value, "sha256:")) || names(kind, e.Attributes["name"], value)
	}
	part := e.Attributes[kind]
	return part != "" && (names(kind, part, value) || kind == "container" && strings.HasPrefix(part, value))
}

// aboutPod is whether an event is about a pod, or about a container in it. The
// pod is named by the beginning of its ID, by name or by namespace/name.
func aboutPod(e spec.Event, value string) bool {
	id, namespace, name := e.Attributes["pod"], "", ""
	if e.Type == "pod" {
		id, namespace, name = e.ID, e.Attributes["namespace"], e.Attributes["name"]
	} else if of := strings.SplitN(e.Attributes["name"], "/", 3); len(of) == 3 { // namespace/pod/container
		namespace, name = of[0], of[1]
	}
	if value == "" || id == "" {
		return false
	}
	return strings.HasPrefix(id, value) || value == name || value == namespace+"/"+name
}

// names is whether value is a way to write name: an image may be named
// without its tag.
func names(kind, name, value string) bool {
	if name == value {
		return name != ""
	}
	if kind != "image" || strings.Contains(value, "@") {
		return false
	}
	slash := strings.LastIndexByte(name, '/')
	colon := strings.LastIndexByte(name, ':')
	return colon > slash && name[:colon] == value
}
