// Package table shows lists of things to people and to programs: aligned
// columns, Go templates with the functions that docker's users know, or JSON.
// It also holds the short forms of ids, sizes and times.
package table

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"reflect"
	"strings"
	"text/tabwriter"
	"text/template"

	"berth/base/errs"
)

// View is how rows of type R look in a list. R is a struct; its exported
// fields and methods are what templates may name.
type View[R any] struct {
	Columns string            // the table's template, as in "{{.ID}}\t{{.Names}}"
	Quiet   string            // what -q shows of a row, as in "{{.ID}}"
	Titles  map[string]string // field to heading; the field in capitals where missing
}

// Write shows rows as format says: "" or "table" for the table of the view,
// "table TEMPLATE" for a table of one's own, "json" for one JSON object a
// line, and anything else is a template run for each row.
func (v View[R]) Write(w io.Writer, format string, rows []R) error {
	if format == "json" {
		return writeJSON(w, rows)
	}
	columns, isTable := v.columns(format)
	body, err := Parse(columns)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	for _, row := range rows {
		if err := body.Execute(&out, row); err != nil {
			return v.explain(err)
		}
		out.WriteByte('\n')
	}
	if !isTable {
		_, err := out.WriteTo(w)
		return err
	}
	heading, err := v.heading(columns)
	if err != nil {
		return err
	}
	aligned := tabwriter.NewWriter(w, 10, 1, 3, ' ', 0)
	fmt.Fprintln(aligned, heading)
	if _, err := out.WriteTo(aligned); err != nil {
		return err
	}
	return aligned.Flush()
}

// WriteQuiet shows what -q shows.
func (v View[R]) WriteQuiet(w io.Writer, rows []R) error { return v.Write(w, v.Quiet, rows) }

func (v View[R]) columns(format string) (columns string, isTable bool) {
	rest, isTable := strings.CutPrefix(format, "table")
	if isTable && rest != "" && rest[0] != ' ' && rest[0] != '\\' && rest[0] != '\t' {
		return format, false // a template that begins with the word
	}
	switch {
	case format == "":
		return v.Columns, true
	case isTable && strings.TrimSpace(rest) == "":
		return v.Columns, true
	case isTable:
		return strings.TrimSpace(rest), true
	}
	return format, false
}

func writeJSON[R any](w io.Writer, rows []R) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	for _, row := range rows {
		if err := encoder.Encode(row); err != nil {
			return err
		}
	}
	return nil
}

// explain says which fields there are when a template names one that is not.
func (v View[R]) explain(err error) error {
	kind := reflect.TypeFor[R]()
	if kind.Kind() != reflect.Struct || !strings.Contains(err.Error(), "can't evaluate field") {
		return errs.New(errs.Invalid, "format: %w", err)
	}
	var fields []string
	for field := range kind.Fields() {
		if field.IsExported() {
			fields = append(fields, "."+field.Name)
		}
	}
	return errs.New(errs.Invalid, "format: %w; there are %s", err, strings.Join(fields, " "))
}

// titles stands in for a row when the heading is made.
type titles map[string]string

// Label makes {{.Label "com.example"}} head its column with the label.
func (titles) Label(name string) string { return name }

func (v View[R]) heading(columns string) (string, error) {
	head := titles{}
	for field := range reflect.TypeFor[R]().Fields() {
		head[field.Name] = strings.ToUpper(field.Name)
	}
	for method := range reflect.TypeFor[R]().Methods() {
		head[method.Name] = strings.ToUpper(method.Name)
	}
	maps.Copy(head, v.Titles)
	t, err := template.New("format").Funcs(plainFuncs).Parse(unescape(columns))
	if err != nil {
		return "", errs.New(errs.Invalid, "format: %w", err)
	}
	var out bytes.Buffer
	if err := t.Option("missingkey=zero").Execute(&out, head); err != nil {
		return "", errs.New(errs.Invalid, "format: %w", err)
	}
	return out.String(), nil
}
