package streaming

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	utilexec "k8s.io/utils/exec"
)

// serveChannels serves a WebSocket of v5.channel.k8s.io, which the library does
// not: there a client ends stdin by a message of its own.
func (s *Server) serveChannels(w http.ResponseWriter, r *http.Request, t ticket, run func(streams) error) {
	channels := make([]wsstream.ChannelType, remotecommand.StreamResize+1)
	for i, kind := range map[int]struct {
		wanted bool
		kind   wsstream.ChannelType
	}{
		remotecommand.StreamStdIn:  {t.stdin, wsstream.ReadChannel},
		remotecommand.StreamStdOut: {t.stdout, wsstream.WriteChannel},
		remotecommand.StreamStdErr: {t.stderr, wsstream.WriteChannel},
		remotecommand.StreamErr:    {true, wsstream.WriteChannel},
		remotecommand.StreamResize: {t.tty, wsstream.ReadChannel},
	} {
		channels[i] = wsstream.IgnoreChannel
		if kind.wanted {
			channels[i] = kind.kind
		}
	}
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		remotecommand.StreamProtocolV5Name: {Binary: true, Channels: channels},
	})
	conn.SetIdleTimeout(idleTimeout)
	_, all, err := conn.Open(w, r)
	if err != nil {
		s.Log.DebugContext(r.Context(), "a client's websocket", "error", err)
		return
	}
	defer conn.Close()
	first := remotecommand.StreamErr
	switch {
	case t.stdout:
		first = remotecommand.StreamStdOut
	case t.stderr:
		first = remotecommand.StreamStdErr
	}
	if _, err := all[first].Write(nil); err != nil { // the client learns that all is there
		return
	}
	resize := make(chan remotecommand.TerminalSize)
	s.pumps.Go(func() { readSizes(r.Context(), all[remotecommand.StreamResize], resize) })
	failed := run(t.only(all[remotecommand.StreamStdIn], all[remotecommand.StreamStdOut], all[remotecommand.StreamStdErr], resize))
	if body, err := json.Marshal(outcome(failed)); err == nil {
		_, _ = all[remotecommand.StreamErr].Write(body)
	}
}

// readSizes reads the sizes that a terminal gets.
func readSizes(ctx context.Context, from io.Reader, to chan<- remotecommand.TerminalSize) {
	defer close(to)
	for decoder := json.NewDecoder(from); ; {
		var size remotecommand.TerminalSize
		if decoder.Decode(&size) != nil {
			return
		}
		select {
		case to <- size:
		case <-ctx.Done():
			return
		}
	}
}

// verdict is how a stream ended, as Kubernetes writes it (meta/v1 Status).
type verdict struct {
	Status  string   `json:"status"`
	Message string   `json:"message,omitempty"`
	Reason  string   `json:"reason,omitempty"`
	Details *details `json:"details,omitempty"`
	Code    int      `json:"code,omitempty"`
}

type details struct {
	Causes []cause `json:"causes"`
}

type cause struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

func outcome(err error) verdict {
	var exit utilexec.ExitError
	switch {
	case err == nil:
		return verdict{Status: "Success"}
	case errors.As(err, &exit) && exit.Exited():
		return verdict{
			Status: "Failure", Message: "command terminated with non-zero exit code: " + err.Error(), Reason: remotecommand.NonZeroExitCodeReason,
			Details: &details{[]cause{{remotecommand.ExitCodeCauseType, strconv.Itoa(exit.ExitStatus())}}},
		}
	}
	return verdict{Status: "Failure", Message: "Internal error occurred: " + err.Error(), Reason: "InternalError", Code: http.StatusInternalServerError}
}
