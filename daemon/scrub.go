package daemon

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"berth/node/image"
	"berth/spec"
)

// toldScrub makes an event of how a scrub ended.
func (n *node) toldScrub(r spec.ScrubResult) {
	n.events.Publish("system", "scrub", n.id, map[string]string{
		"checked": strconv.FormatInt(r.Checked, 10), "bytes": strconv.FormatInt(r.Bytes, 10),
		"damaged": strconv.Itoa(r.Damaged), "repaired": strconv.Itoa(r.Repaired),
		"seconds": strconv.FormatFloat(r.Ended.Sub(r.Started).Seconds(), 'f', 1, 64),
	})
}

// toldDamage makes an event of damage, and counts it.
func (n *node) toldDamage(d spec.Damage) {
	n.metrics.damage.WithLabelValues(d.Part, strconv.FormatBool(d.Repaired)).Inc()
	n.events.Publish("system", "damage", d.Name, map[string]string{
		"part": d.Part, "what": d.What, "images": strings.Join(d.Images, " "), "repaired": strconv.FormatBool(d.Repaired), "repair": d.Repair,
	})
}

// damageWarning says in one line how much is damaged, and in which images.
func damageWarning(damage []spec.Damage) string {
	var images []string
	for _, d := range damage {
		images = append(images, d.Images...)
	}
	slices.Sort(images)
	images = slices.Compact(images)
	text := fmt.Sprintf("damaged parts: %d", len(damage))
	if len(images) > 0 {
		text += ", in " + strings.Join(images[:min(3, len(images))], ", ")
	}
	if len(images) > 3 {
		text += fmt.Sprintf(" and %d more images", len(images)-3)
	}
	return text + "; berth system scrub says more, and repairs what can be"
}

// countScrubs makes metrics of what scrubs have read.
func (m *metrics) countScrubs(images *image.Set) {
	m.registry.MustRegister(
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "berth_scrub_checked_total", Help: "Parts that scrubs have held against their digests."},
			func() float64 { parts, _ := images.ScrubRead(); return float64(parts) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "berth_scrub_read_bytes_total", Help: "Bytes that scrubs have read."},
			func() float64 { _, bytes := images.ScrubRead(); return float64(bytes) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "berth_scrub_damaged", Help: "Parts that are known to be damaged now."},
			func() float64 { return float64(len(images.Damage())) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "berth_scrub_last_timestamp_seconds", Help: "When the last whole scrub ended; 0 where there was none."},
			func() float64 {
				last := images.LastScrub()
				if last == nil {
					return 0
				}
				return float64(last.Ended.UnixMilli()) / 1000
			}),
	)
}
