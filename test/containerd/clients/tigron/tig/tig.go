// Package tig stands in for the one that nerdctl's own tests are written
// with: nerdctl's program names it and never calls it.
package tig

// T is what those tests ask of a test.
type T interface {
	Helper()
	FailNow()
	Fail()
	Log(args ...any)
	Name() string
	TempDir() string
}
