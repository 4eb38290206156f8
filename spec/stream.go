package spec

// Channel is the first byte of every binary message on a WebSocket of attach
// and exec.
type Channel byte

// The channels. Those of a number below three carry bytes as they are, the
// others one JSON value a message.
const (
	ChannelStdin  Channel = 0
	ChannelStdout Channel = 1
	ChannelStderr Channel = 2
	ChannelEnd    Channel = 3   // StreamEnd, the last message
	ChannelResize Channel = 4   // Size
	ChannelPlace  Channel = 5   // StreamPlace
	ChannelClose  Channel = 255 // closes the channel that the next byte names
)

// StreamPlace says where in a container's log an attached stream stands: the
// bytes of output that follow this message begin Skipped bytes after it. The first message of
// an attach is one; later ones may follow. Who attaches again from Position,
// skipping the bytes received since, misses nothing and gets nothing twice.
type StreamPlace struct {
	Container string `json:"container" doc:"full id"`
	Position  string `json:"position"`
	Skipped   int64  `json:"skipped,omitempty"`
}

// StreamEnd ends a stream: the process's exit, or what went wrong.
type StreamEnd struct {
	Exit    *Exit    `json:"exit,omitempty"`
	Problem *Problem `json:"problem,omitempty"`
}
