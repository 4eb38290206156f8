package cri

import (
	"context"
	"encoding/json"
	"fmt"

	"berth/spec"
)

// podInfo is what people and tools are shown of a pod besides its status.
func (s *Server) podInfo(_ context.Context, p spec.Pod) (map[string]string, error) {
	return info(map[string]any{"id": p.ID, "runtimeType": p.Runtime, "config": p.Config})
}

// containerInfo is the same of a container.
func (s *Server) containerInfo(_ context.Context, c spec.PodContainer) (map[string]string, error) {
	return info(map[string]any{"sandboxID": c.Pod, "pid": c.Pid, "config": c.Config})
}

// info is a value under the key where tools look for it.
func info(v any) (map[string]string, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("info: %w", err)
	}
	return map[string]string{"info": string(text)}, nil
}
