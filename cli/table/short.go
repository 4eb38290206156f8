package table

import (
	"fmt"
	"strings"
	"time"

	"github.com/docker/go-units"
)

const shortID = 12

// ID shortens an id or digest to twelve characters.
func ID(id string) string {
	_, hex, isDigest := strings.Cut(id, ":")
	if !isDigest {
		hex = id
	}
	return hex[:min(shortID, len(hex))]
}

// Size is a size in powers of 1000, as in 7.05MB.
func Size(bytes int64) string { return units.HumanSizeWithPrecision(float64(bytes), 3) }

// Memory is a size in powers of 1024, as in 512MiB.
func Memory(bytes uint64) string { return units.CustomSize("%.4g%s", float64(bytes), 1024, binary) }

var binary = []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}

// Ago is the time from at to now, as in "5 minutes ago"; N/A for no time.
func Ago(at, now time.Time) string {
	if at.IsZero() {
		return "N/A"
	}
	return units.HumanDuration(now.Sub(at)) + " ago"
}

// Lasting is a length of time, as in "About an hour".
func Lasting(d time.Duration) string { return units.HumanDuration(max(0, d)) }

// At is a point in time in full; empty for no time.
func At(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	return at.Local().Format("2006-01-02 15:04:05 -0700 MST")
}

// Ellipsis cuts s to at most length characters, the last then being "…".
func Ellipsis(s string, length int) string {
	runes := []rune(s)
	if len(runes) <= length || length < 1 {
		return s
	}
	return string(runes[:length-1]) + "…"
}

// Percent is a share, as in 12.34%.
func Percent(share float64) string { return fmt.Sprintf("%.2f%%", share) }

var bars = []rune("▁▂▃▄▅▆▇█")

// Sparkline draws the last width values between 0 and top, one character
// each. A top of 0 stands for the largest of them.
func Sparkline(values []float64, width int, top float64) string {
	values = values[max(0, len(values)-width):]
	if top <= 0 {
		for _, v := range values {
			top = max(top, v)
		}
	}
	line := make([]rune, 0, width)
	for range width - len(values) {
		line = append(line, ' ')
	}
	for _, v := range values {
		level := 0
		if top > 0 {
			level = int(v / top * float64(len(bars)-1))
		}
		line = append(line, bars[min(max(level, 0), len(bars)-1)])
	}
	return string(line)
}
