package wire_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth/base/errs"
	"berth/face/cri/wire"
)

// kinds are all that base/errs declares.
func kinds(t *testing.T) []errs.Kind {
	t.Helper()
	source, err := os.ReadFile("../../../base/errs/errs.go")
	if err != nil {
		t.Fatal(err)
	}
	var all []errs.Kind
	for _, m := range regexp.MustCompile(`(?m)^\t\w+\s+Kind = "(.*)"`).FindAllSubmatch(source, -1) {
		all = append(all, errs.Kind(m[1]))
	}
	return all
}

func TestEveryKindHasACodeOfItsOwn(t *testing.T) {
	all := kinds(t)
	if len(all) < 12 {
		t.Fatalf("found only %v", all)
	}
	seen := map[codes.Code]errs.Kind{}
	for _, kind := range all {
		code := status.Code(wire.Error(errs.New(kind, "x")))
		if other, taken := seen[code]; taken || code == codes.OK || code == codes.Unknown {
			t.Errorf("%s has code %s, as %q", kind, code, other)
		}
		seen[code] = kind
	}
}

func TestError(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want codes.Code
		text string
	}{
		{nil, codes.OK, ""},
		{fmt.Errorf("stop: %w", errs.New(errs.NotFound, "no pod %s", "a")), codes.NotFound, "stop: no pod a"},
		{context.DeadlineExceeded, codes.DeadlineExceeded, "context deadline exceeded"},
		{errors.New("disk on fire"), codes.Internal, "disk on fire"},
		{status.Error(codes.DataLoss, "gone"), codes.DataLoss, "gone"},
		{fmt.Errorf("ask: %w", status.Error(codes.DataLoss, "gone")), codes.DataLoss, "ask: rpc error: code = DataLoss desc = gone"},
	} {
		got := status.Convert(wire.Error(tt.err))
		if got.Code() != tt.want || got.Message() != tt.text {
			t.Errorf("%v became %s %q, want %s %q", tt.err, got.Code(), got.Message(), tt.want, tt.text)
		}
	}
}

func TestStream(t *testing.T) {
	for _, tt := range []struct {
		sizes []int
		want  string
	}{
		{nil, "[]"},
		{[]int{1}, "[[0]]"},
		{[]int{wire.Part, 1, 1}, "[[0] [1 2]]"},
		{[]int{wire.Part * 3, wire.Part * 3}, "[[0] [1]]"},
		{[]int{wire.Part / 2, wire.Part / 2, 1}, "[[0 1] [2]]"},
	} {
		items := make([]int, len(tt.sizes))
		for i := range items {
			items[i] = i
		}
		parts := [][]int{}
		err := wire.Stream(items, func(i int) int { return tt.sizes[i] }, func(part []int) error {
			parts = append(parts, slices.Clone(part))
			return nil
		})
		if err != nil || fmt.Sprint(parts) != tt.want {
			t.Errorf("%v in parts: %v, %v; want %s", tt.sizes, parts, err, tt.want)
		}
	}
	failed := errors.New("gone")
	sent := 0
	err := wire.Stream([]int{1, 2, 3}, func(int) int { return wire.Part }, func([]int) error { sent++; return failed })
	if !errors.Is(err, failed) || sent != 1 {
		t.Errorf("after an error: %v, and %d parts", err, sent)
	}
}
