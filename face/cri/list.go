package cri

import (
	"google.golang.org/protobuf/proto"

	"berth/base/errs"
	"berth/face/cri/wire"
)

// gone: what is not there needs neither be stopped nor removed.
func gone(err error) error {
	if errs.KindOf(err) == errs.NotFound {
		return nil
	}
	return err
}

// only is the whole id of the one thing that a filter names; found is false
// where there is none, or several begin so. No id at all is any thing.
func only(id string, find func(string) (string, error)) (whole string, found bool, err error) {
	if id == "" {
		return "", true, nil
	}
	whole, err = find(id)
	if kind := errs.KindOf(err); kind == errs.NotFound || kind == errs.Conflict {
		return "", false, nil
	}
	return whole, err == nil, err
}

// selects says whether labels are what a selector wants.
func selects(selector, labels map[string]string) bool {
	for name, want := range selector {
		if got, has := labels[name]; !has || got != want {
			return false
		}
	}
	return true
}

// send sends a list in parts.
func send[T proto.Message](items []T, part func([]T) error) error {
	return wire.Stream(items, func(item T) int { return proto.Size(item) }, part)
}
