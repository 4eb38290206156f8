package images

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/node/image"
)

// Labels of names, as other clients of the namespace know them.
const (
	managedLabel = "io.cri-containerd.image"
	// PinnedLabel says that an image is to stay when disk is wanted.
	PinnedLabel = "io.cri-containerd.pinned"
	pinned      = "pinned"
)

func (s *Service) show(i image.Spaced) *cri.Image {
	shown := &cri.Image{
		Id: i.ID, RepoTags: i.Tags(), RepoDigests: i.Digests(), Size: uint64(max(i.Size, 1)),
		Spec: &cri.ImageSpec{Image: i.ID, Annotations: annotations(i)}, Pinned: s.isPinned(i),
	}
	shown.Uid, shown.Username = user(i.Config.User)
	return shown
}

// annotations are those of what the image's first name stands for.
func annotations(i image.Spaced) map[string]string {
	for _, rec := range i.Names {
		if len(rec.Target.Annotations) > 0 {
			return rec.Target.Annotations
		}
	}
	return nil
}

func (s *Service) isPinned(i image.Spaced) bool {
	if i.Label(PinnedLabel) == pinned {
		return true
	}
	for _, rec := range i.Names {
		if s.Pinned(rec.Name) {
			return true
		}
	}
	return false
}

// user is whom an image's containers run as: a number or else a name. Nothing
// said is root, whose number Kubernetes wants to see.
func user(said string) (*cri.Int64Value, string) {
	who, _, _ := strings.Cut(said, ":")
	if who == "" {
		return &cri.Int64Value{}, ""
	}
	if uid, err := strconv.ParseInt(who, 10, 64); err == nil {
		return &cri.Int64Value{Value: uid}, ""
	}
	return nil, who
}

// info is more of an image, in words.
func info(i image.Spaced) (map[string]string, error) {
	text, err := json.Marshal(map[string]any{"imageSpec": map[string]any{"config": ociConfig(i)}})
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", i.ID, err)
	}
	return map[string]string{"info": string(text)}, nil
}

// ociConfig is the image's configuration under the names that it has in the
// image.
func ociConfig(i image.Spaced) map[string]any {
	c := i.Config
	config := map[string]any{}
	for key, value := range map[string]any{
		"User": c.User, "Env": c.Env, "Entrypoint": c.Entrypoint, "Cmd": c.Command, "WorkingDir": c.WorkDir, "Labels": c.Labels, "StopSignal": c.StopSignal,
	} {
		if text := fmt.Sprint(value); text != "" && text != "[]" && text != "map[]" {
			config[key] = value
		}
	}
	return config
}
