package table

import (
	"bytes"
	"encoding/json"
	"strings"
	"text/template"
	"unicode"

	"berth/base/errs"
)

// Parse makes a template of a format; \t and \n in it stand for a tab and a
// new line.
func Parse(format string) (*template.Template, error) {
	t, err := template.New("format").Funcs(funcs).Parse(unescape(format))
	if err != nil {
		return nil, errs.New(errs.Invalid, "format: %w", err)
	}
	return t, nil
}

func unescape(format string) string {
	return strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(format)
}

var funcs = template.FuncMap{
	"json":     marshal,
	"split":    strings.Split,
	"join":     func(list []string, separator string) string { return strings.Join(list, separator) },
	"title":    title,
	"lower":    strings.ToLower,
	"upper":    strings.ToUpper,
	"pad":      pad,
	"truncate": truncate,
}

// plainFuncs leave a heading as it is.
var plainFuncs = template.FuncMap{
	"json":     func(v any) any { return v },
	"split":    func(v any, _ string) any { return v },
	"join":     func(v any, _ string) any { return v },
	"title":    func(v any) any { return v },
	"lower":    func(v any) any { return v },
	"upper":    func(v any) any { return v },
	"pad":      pad,
	"truncate": func(v any, _ int) any { return v },
}

func marshal(v any) (string, error) {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(v)
	return strings.TrimSuffix(out.String(), "\n"), err
}

func title(s string) string {
	first := true
	return strings.Map(func(r rune) rune {
		defer func() { first = unicode.IsSpace(r) }()
		if first {
			return unicode.ToUpper(r)
		}
		return r
	}, s)
}

func pad(s string, before, after int) string {
	if s == "" {
		return s
	}
	return strings.Repeat(" ", max(0, before)) + s + strings.Repeat(" ", max(0, after))
}

func truncate(s string, length int) string {
	runes := []rune(s)
	if length < 0 || len(runes) <= length {
		return s
	}
	return string(runes[:length])
}
