package image

import (
	"encoding/json"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth/base/errs"
	"berth/spec"
)

// applyChanges lays lines of a Dockerfile over config.
func applyChanges(config spec.ImageConfig, lines []string) (spec.ImageConfig, error) {
	c := change{ImageConfig: cloneConfig(config)}
	for _, line := range lines {
		verb, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		rest = strings.TrimSpace(rest)
		apply, ok := changeVerbs[strings.ToUpper(verb)]
		if !ok {
			return config, errs.New(errs.Invalid, "change %q: want CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR", line)
		}
		if rest == "" {
			return config, errs.New(errs.Invalid, "change %q: %s of what?", line, strings.ToUpper(verb))
		}
		if err := apply(&c, rest); err != nil {
			return config, errs.New(errs.Invalid, "change %q: %w", line, err)
		}
	}
	return c.ImageConfig, nil
}

type change struct {
	spec.ImageConfig
	commandSet bool
}

var changeVerbs = map[string]func(*change, string) error{
	"CMD": func(c *change, rest string) error {
		c.Command, c.commandSet = command(rest), true
		return nil
	},
	"ENTRYPOINT": func(c *change, rest string) error {
		c.Entrypoint = command(rest)
		if !c.commandSet {
			c.Command = nil // it was meant for the old entrypoint
		}
		return nil
	},
	"ENV":         (*change).env,
	"LABEL":       (*change).label,
	"EXPOSE":      (*change).expose,
	"VOLUME":      (*change).volume,
	"USER":        func(c *change, rest string) error { c.User = rest; return nil },
	"STOPSIGNAL":  func(c *change, rest string) error { c.StopSignal = rest; return nil },
	"HEALTHCHECK": (*change).healthCheck,
	"WORKDIR": func(c *change, rest string) error {
		if !path.IsAbs(rest) {
			rest = path.Join("/", c.WorkDir, rest)
		}
		c.WorkDir = path.Clean(rest)
		return nil
	},
}

// command reads the exec form, a JSON list, or makes a shell run the line.
func command(rest string) []string {
	var list []string
	if strings.HasPrefix(rest, "[") && json.Unmarshal([]byte(rest), &list) == nil {
		return list
	}
	return []string{"/bin/sh", "-c", rest}
}

func (c *change) env(rest string) error {
	pairs, err := pairsOf(rest)
	for _, p := range pairs {
		set := p[0] + "=" + p[1]
		at := slices.IndexFunc(c.Env, func(e string) bool { return strings.HasPrefix(e, p[0]+"=") })
		if at >= 0 {
			c.Env[at] = set
		} else {
			c.Env = append(c.Env, set)
		}
	}
	return err
}

func (c *change) label(rest string) error {
	pairs, err := pairsOf(rest)
	for _, p := range pairs {
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		c.Labels[p[0]] = p[1]
	}
	return err
}

func (c *change) expose(rest string) error {
	words, err := split(rest)
	if err != nil {
		return err
	}
	known := map[spec.Exposed]bool{}
	for _, exposed := range c.ExposedPorts {
		known[exposed] = true
	}
	for _, word := range words {
		port, protocol, found := strings.Cut(word, "/")
		if !found {
			protocol = "tcp"
		}
		first, last, _ := strings.Cut(port, "-")
		if last == "" {
			last = first
		}
		from, err1 := strconv.ParseUint(first, 10, 16)
		to, err2 := strconv.ParseUint(last, 10, 16)
		if err1 != nil || err2 != nil || from == 0 || to < from || !slices.Contains([]string{"tcp", "udp", "sctp"}, protocol) {
			return errs.New(errs.Invalid, "port %q: want 80, 80/udp or 80-90/tcp", word)
		}
		for p := from; p <= to; p++ {
			exposed := spec.Exposed(strconv.FormatUint(p, 10) + "/" + protocol)
			if !known[exposed] {
				known[exposed] = true
				c.ExposedPorts = append(c.ExposedPorts, exposed)
			}
		}
	}
	return nil
}

func (c *change) volume(rest string) error {
	var list []string
	if !strings.HasPrefix(rest, "[") || json.Unmarshal([]byte(rest), &list) != nil {
		var err error
		if list, err = split(rest); err != nil {
			return err
		}
	}
	for _, volume := range list {
		if !slices.Contains(c.Volumes, volume) {
			c.Volumes = append(c.Volumes, volume)
		}
	}
	return nil
}

func (c *change) healthCheck(rest string) error {
	if strings.EqualFold(rest, "NONE") {
		c.Health = &spec.HealthConfig{Test: []string{"NONE"}}
		return nil
	}
	health := spec.HealthConfig{}
	for strings.HasPrefix(rest, "--") {
		flag, after, _ := strings.Cut(rest, " ")
		name, value, _ := strings.Cut(flag, "=")
		if err := setHealth(&health, name, value); err != nil {
			return err
		}
		rest = strings.TrimSpace(after)
	}
	verb, line, _ := strings.Cut(rest, " ")
	line = strings.TrimSpace(line)
	if !strings.EqualFold(verb, "CMD") || line == "" {
		return errs.New(errs.Invalid, "want NONE, or CMD and a command")
	}
	var list []string
	if strings.HasPrefix(line, "[") && json.Unmarshal([]byte(line), &list) == nil {
		health.Test = append([]string{"CMD"}, list...)
	} else {
		health.Test = []string{"CMD-SHELL", line}
	}
	c.Health = &health
	return nil
}

func setHealth(h *spec.HealthConfig, name, value string) error {
	if name == "--retries" {
		n, err := strconv.Atoi(value)
		h.Retries = n
		return err
	}
	into := map[string]*time.Duration{
		"--interval": &h.Interval, "--timeout": &h.Timeout,
		"--start-period": &h.StartPeriod, "--start-interval": &h.StartInterval,
	}[name]
	if into == nil {
		return errs.New(errs.Invalid, "unknown flag %s", name)
	}
	d, err := time.ParseDuration(value)
	*into = d
	return err
}

// pairsOf reads name=value name2="value 2", or the old form: name value.
func pairsOf(rest string) ([][2]string, error) {
	words, err := split(rest)
	if err != nil || len(words) == 0 {
		return nil, err
	}
	if !strings.Contains(words[0], "=") {
		name, value, found := strings.Cut(rest, " ")
		if !found {
			return nil, errs.New(errs.Invalid, "%s has no value", name)
		}
		return [][2]string{{name, strings.TrimSpace(value)}}, nil
	}
	var pairs [][2]string
	for _, word := range words {
		name, value, found := strings.Cut(word, "=")
		if !found || name == "" {
			return nil, errs.New(errs.Invalid, "%q is not name=value", word)
		}
		pairs = append(pairs, [2]string{name, value})
	}
	return pairs, nil
}

// split cuts a line into words as a shell would: by spaces, but for those in
// quotes or behind a backslash.
func split(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	var quote rune
	inWord, escaped := false, false
	for _, r := range line {
		switch {
		case escaped:
			if quote == '"' && r != '"' && r != '\\' && r != '$' {
				word.WriteRune('\\')
			}
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			escaped, inWord = true, true
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '"' || r == '\'':
			quote, inWord = r, true
		case r == ' ' || r == '\t':
			if inWord {
				words = append(words, word.String())
				word.Reset()
				inWord = false
			}
		default:
			word.WriteRune(r)
			inWord = true
		}
	}
	if quote != 0 || escaped {
		return nil, errs.New(errs.Invalid, "a quote is not closed in %q", line)
	}
	if inWord {
		words = append(words, word.String())
	}
	return words, nil
}
