package seccomp

import (
	"fmt"
	"strings"

	"berth/base/errs"
	"berth/spec"
)

// mode is what becomes of calls that a profile forbids.
type mode string

const (
	stop   mode = "stop"
	deny   mode = "deny"
	audit  mode = "audit"
	record mode = "record"
)

// order is what an annotation asks for.
type order struct {
	mode mode
	file string
}

func (o order) String() string {
	if o.file != "" {
		return fmt.Sprintf("%s=%s", o.mode, o.file)
	}
	return string(o.mode)
}

// The annotations: ours, and both of CRI-O's.
const (
	annotation        = "seccomp-notifier-action.berth.io"
	annotationCRIO    = "seccomp-notifier-action.crio.io"
	annotationCRIOOld = "io.kubernetes.cri-o.seccompNotifierAction"
)

// orderFor is what the annotations say of a container. Ours is looked at
// first, and the more precise before the less.
func orderFor(pod spec.Pod, c spec.PodContainer) (order, error) {
	for _, key := range []string{annotation, annotationCRIO, annotationCRIOOld} {
		for _, from := range []map[string]string{c.Config.Annotations, pod.Config.Annotations} {
			for _, name := range []string{key + "/" + c.Config.Name, key} {
				if value, asked := from[name]; asked {
					return parse(key, value)
				}
			}
		}
	}
	return order{}, nil
}

func parse(key, value string) (order, error) {
	value = strings.TrimSpace(value)
	if key != annotation {
		if value == string(stop) {
			return order{mode: stop}, nil
		}
		return order{mode: deny}, nil
	}
	name, file, named := strings.Cut(value, "=")
	switch m := mode(name); {
	case m == record && (!named || file != ""):
		return order{mode: m, file: file}, nil
	case !named && (m == stop || m == deny || m == audit):
		return order{mode: m}, nil
	}
	return order{}, errs.New(errs.Invalid, "annotation %s: %q is none of stop, deny, audit, record, record=FILE", annotation, value)
}
