package snapshots

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth/base/errs"
)

// Every kind of error has a code, and each a different one.
func TestEveryKindHasACode(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "../../../base/errs/errs.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[codes.Code]errs.Kind{codes.OK: "none"}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Values) != 1 {
			return true
		}
		literal, ok := spec.Values[0].(*ast.BasicLit)
		if !ok || literal.Kind != token.STRING {
			return true
		}
		text, _ := strconv.Unquote(literal.Value)
		kind := errs.Kind(text)
		code := status.Code(failed("try", errs.New(kind, "x")))
		if other, taken := kinds[code]; taken {
			t.Errorf("kinds %q and %q have the code %s", kind, other, code)
		}
		kinds[code] = kind
		return true
	})
	if len(kinds) < 12 {
		t.Errorf("found only the kinds %v", kinds)
	}
}
