package rest

import (
	"context"
	"sync"

	"berth/spec"
)

const (
	frameSize  = 32 << 10  // a frame is sent once it has so much, or nothing else is to be done
	outboxSize = 256 << 10 // who puts waits while so much is not sent yet
)

// outbox gathers small pieces of output while earlier ones are being sent, so
// that a flood travels in large frames and a trickle at once. It keeps the
// order, and holds back whoever puts when the reader is slow.
type outbox struct {
	mu      sync.Mutex
	changed sync.Cond
	frames  [][]byte // the first byte is the channel
	spare   [][]byte
	bytes   int
	closed  bool
	err     error
}

func newOutbox() *outbox {
	o := &outbox{}
	o.changed.L = &o.mu
	return o
}

// put appends data to channel's output. It returns the error that sending met.
func (o *outbox) put(channel spec.Channel, data ...[]byte) error {
	size := 0
	for _, d := range data {
		size += len(d)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.bytes >= outboxSize && o.err == nil {
		o.changed.Wait()
	}
	if o.err != nil {
		return o.err
	}
	frame := o.frame(channel, size)
	for _, d := range data {
		*frame = append(*frame, d...)
	}
	o.bytes += size
	o.changed.Broadcast()
	return nil
}

// frame is the last frame if size more bytes of channel fit, or a new one.
// Channels of JSON are never gathered: each value is a frame.
func (o *outbox) frame(channel spec.Channel, size int) *[]byte {
	if n := len(o.frames); n > 0 && channel <= spec.ChannelStderr {
		last := &o.frames[n-1]
		if (*last)[0] == byte(channel) && len(*last)+size <= frameSize {
			return last
		}
	}
	var f []byte
	if n := len(o.spare); n > 0 {
		f, o.spare = o.spare[n-1][:0], o.spare[:n-1]
	}
	o.frames = append(o.frames, append(f, byte(channel)))
	return &o.frames[len(o.frames)-1]
}

// close lets send return once all is sent.
func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.changed.Broadcast()
}

// fail makes every put and send return err.
func (o *outbox) fail(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err == nil {
		o.err = err
	}
	o.changed.Broadcast()
}

// idle says that all was taken and sent.
func (o *outbox) idle() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.bytes == 0 || o.err != nil
}

// send gives frames to write, all that there are at a time, until close, an
// error of write, or the end of ctx.
func (o *outbox) send(ctx context.Context, write func(frames [][]byte) error) error {
	stop := context.AfterFunc(ctx, func() { o.fail(context.Cause(ctx)) })
	defer stop()
	for {
		frames, bytes, err := o.take()
		if err != nil {
			return err
		}
		if frames == nil {
			return nil
		}
		if err := write(frames); err != nil {
			o.fail(err)
			return err
		}
		o.sent(frames, bytes)
	}
}

func (o *outbox) take() (frames [][]byte, bytes int, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.frames) == 0 && !o.closed && o.err == nil {
		o.changed.Wait()
	}
	frames, o.frames = o.frames, nil
	return frames, o.bytes, o.err
}

func (o *outbox) sent(frames [][]byte, bytes int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.bytes -= bytes
	for _, f := range frames {
		if len(o.spare) < 16 && cap(f) <= 2*frameSize {
			o.spare = append(o.spare, f)
		}
	}
	o.changed.Broadcast()
}
