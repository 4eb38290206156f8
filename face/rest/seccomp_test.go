package rest_test

import (
	"context"
	"errors"
	"testing"

	"berth/base/errs"
	"berth/spec"
)

type profiles struct{}

func (profiles) Profiles(context.Context) ([]spec.SeccompProfile, error) {
	return []spec.SeccompProfile{
		{Name: "shop_web_app", From: []string{"shop/web/app"}, Calls: []string{"read"}, Profile: map[string]any{"defaultAction": "SCMP_ACT_ERRNO"}},
		{Name: "two", From: []string{"shop/a/b", "shop/a/c"}, Profile: map[string]any{}},
	}, nil
}

func TestSeccomp(t *testing.T) {
	c := start(t, newNode()).client()
	all, err := c.SeccompList(bg)
	if err != nil || len(all) != 2 || all[0].Calls[0] != "read" || all[0].Profile != nil {
		t.Errorf("%+v, %v", all, err)
	}
	for ref, want := range map[string]string{"shop_web_app": "shop_web_app", "shop/web/app": "shop_web_app", "two": "two", "shop/a/b": ""} {
		one, err := c.SeccompGet(bg, ref)
		if one.Name != want || (want == "") != errors.Is(err, errs.NotFound) || want != "" && one.Profile == nil {
			t.Errorf("%s: %+v, %v", ref, one, err)
		}
	}
}
