package images

import (
	"os"
	"path/filepath"
	"testing"
)

// critest is built with the digest that is written beside this: it has to be
// that of the image, on every machine.
func TestFixedDigest(t *testing.T) {
	programs := "../../../.cache/cri"
	for _, program := range []string{"busybox", "actor"} {
		if _, err := os.Stat(filepath.Join(programs, program)); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skip("skipped: test/cri/build.sh was not run")
		}
	}
	made, err := Make(t.Context(), programs)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, i := range made {
		if names[i.Name] {
			t.Errorf("two images are named %s", i.Name)
		}
		names[i.Name] = true
		if i.Name == "k8s-staging-cri-tools/test-image-digest:latest" && i.Digest != Fixed() {
			t.Errorf("the image that is pulled by its digest is %s, want %s: critest has to be built again", i.Digest, Fixed())
		}
	}
	if len(names) < 20 {
		t.Errorf("%d images", len(names))
	}
}
