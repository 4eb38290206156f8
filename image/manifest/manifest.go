// Package manifest knows the documents that images are made of, in OCI's and
// docker's formats: which media types there are, what a document refers to,
// how large it may be, and which manifest of an index fits a platform.
package manifest

import (
	"encoding/json"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/errs"
)

// Bounds of what is accepted from outside.
const (
	Limit       = 4 << 20 // bytes of a manifest or index, as registries have it
	ConfigLimit = 8 << 20 // bytes of a configuration
	LayersLimit = 1000    // layers of one image; every driver gives up long before
	SizeLimit   = 1 << 44 // bytes that a layer may claim: 16 TiB
	DepthLimit  = 3       // an index may hold indexes, but not for ever
)

// The media types of docker's own format.
const (
	DockerManifest  = "application/vnd.docker.distribution.manifest.v2+json"
	DockerList      = "application/vnd.docker.distribution.manifest.list.v2+json"
	DockerConfig    = "application/vnd.docker.container.image.v1+json"
	DockerLayer     = "application/vnd.docker.image.rootfs.diff.tar"
	DockerLayerGzip = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	DockerLayerZstd = "application/vnd.docker.image.rootfs.diff.tar.zstd"
)

// IsIndex says whether media type t is an index or a manifest list.
func IsIndex(t string) bool { return t == ocispec.MediaTypeImageIndex || t == DockerList }

// IsManifest says whether media type t is the manifest of one image.
func IsManifest(t string) bool { return t == ocispec.MediaTypeImageManifest || t == DockerManifest }

// IsConfig says whether media type t is the configuration of a container image.
func IsConfig(t string) bool { return t == ocispec.MediaTypeImageConfig || t == DockerConfig }

// CheckDescriptor refuses a descriptor that no registry would have made, or
// that claims more than limit bytes.
func CheckDescriptor(desc ocispec.Descriptor, limit int64) error {
	if desc.Size < 0 || desc.Size > limit {
		return errs.New(errs.Invalid, "%s %s claims %d bytes; up to %d are accepted", desc.MediaType, desc.Digest, desc.Size, limit)
	}
	if err := desc.Digest.Validate(); err != nil {
		return errs.New(errs.Invalid, "digest %.80q: %w", desc.Digest, err)
	}
	return nil
}

// CheckType lets manifests and indexes through.
func CheckType(t string) error {
	switch {
	case IsIndex(t) || IsManifest(t):
		return nil
	case strings.HasPrefix(t, "application/vnd.docker.distribution.manifest.v1+"):
		return errs.New(errs.Unsupported, "the image has docker's manifest schema 1, which is long out of use: push it again with a current tool")
	}
	return errs.New(errs.Unsupported, "media type %q is neither an image manifest nor an index", t)
}

// CheckLayer lets through what can be unpacked: tars, plain or compressed.
func CheckLayer(l ocispec.Descriptor) error {
	switch t := strings.ReplaceAll(l.MediaType, "nondistributable.", ""); t {
	case ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd, DockerLayer, DockerLayerGzip, DockerLayerZstd:
		return CheckDescriptor(l, SizeLimit)
	case DockerForeign, DockerForeign + ".gzip":
		return errs.New(errs.Unsupported, "layer %s is foreign (%s): it belongs to a Windows image, which cannot run here", l.Digest, l.MediaType)
	}
	return errs.New(errs.Unsupported, "layer %s has the media type %q, which cannot be unpacked", l.Digest, l.MediaType)
}

// DockerForeign is a layer that must be fetched from elsewhere.
const DockerForeign = "application/vnd.docker.image.rootfs.foreign.diff.tar"

// ParseIndex reads an index or manifest list.
func ParseIndex(d digest.Digest, body []byte) (ocispec.Index, error) {
	var x ocispec.Index
	if err := json.Unmarshal(body, &x); err != nil {
		return x, errs.New(errs.Invalid, "index %s: %w", d, err)
	}
	return x, nil
}

// Parse reads the manifest that desc describes and checks all but its layers'
// types.
func Parse(desc ocispec.Descriptor, body []byte) (ocispec.Manifest, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(body, &m); err != nil {
		return m, errs.New(errs.Invalid, "manifest %s: %w", desc.Digest, err)
	}
	switch {
	case m.MediaType != "" && m.MediaType != desc.MediaType:
		return m, errs.New(errs.Invalid, "manifest %s calls itself %s, but was announced as %s", desc.Digest, m.MediaType, desc.MediaType)
	case m.Config.Digest == "":
		return m, errs.New(errs.Invalid, "manifest %s names no configuration", desc.Digest)
	case len(m.Layers) > LayersLimit:
		return m, errs.New(errs.Invalid, "manifest %s has %d layers; up to %d are accepted", desc.Digest, len(m.Layers), LayersLimit)
	}
	return m, CheckDescriptor(m.Config, ConfigLimit)
}

// MediaType tells a manifest from an index where only the body is known.
func MediaType(body []byte) string {
	var doc struct {
		MediaType string            `json:"mediaType"`
		Manifests []json.RawMessage `json:"manifests"`
		Config    json.RawMessage   `json:"config"`
	}
	switch err := json.Unmarshal(body, &doc); {
	case err != nil:
		return ""
	case doc.MediaType != "":
		return doc.MediaType
	case doc.Manifests != nil:
		return ocispec.MediaTypeImageIndex
	case doc.Config != nil:
		return ocispec.MediaTypeImageManifest
	}
	return ""
}
