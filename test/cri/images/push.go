package images

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Push brings images to the registry at base, such as http://127.0.0.1:5000.
func Push(ctx context.Context, base string, images []Image) error {
	for _, i := range images {
		repository, tag, _ := strings.Cut(i.Name, ":")
		for d, body := range i.Blobs {
			if err := pushBlob(ctx, base, repository, d, body); err != nil {
				return fmt.Errorf("push %s: %w", i.Name, err)
			}
		}
		_, err := ask(ctx, http.MethodPut, base+"/v2/"+repository+"/manifests/"+tag, ocispec.MediaTypeImageManifest, i.Manifest, http.StatusCreated)
		if err != nil {
			return fmt.Errorf("push %s: %w", i.Name, err)
		}
	}
	return nil
}

func pushBlob(ctx context.Context, base, repository string, d digest.Digest, body []byte) error {
	upload, err := ask(ctx, http.MethodPost, base+"/v2/"+repository+"/blobs/uploads/", "", nil, http.StatusAccepted)
	if err != nil {
		return err
	}
	query := upload.Query()
	query.Set("digest", d.String())
	upload.RawQuery = query.Encode()
	_, err = ask(ctx, http.MethodPut, upload.String(), "application/octet-stream", body, http.StatusCreated)
	return err
}

// ask wants an answer of the given status and returns where it leads.
func ask(ctx context.Context, method, to, contentType string, body []byte, status int) (*url.URL, error) {
	request, err := http.NewRequestWithContext(ctx, method, to, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != status {
		said, _ := io.ReadAll(io.LimitReader(response.Body, 1000))
		return nil, fmt.Errorf("%s %s: %s: %s", method, to, response.Status, said)
	}
	_, _ = io.Copy(io.Discard, response.Body)
	return response.Location()
}
