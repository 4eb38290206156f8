package test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What Prometheus is told is named and explained as its own linter wants it.
func TestMetricsAreWellNamed(t *testing.T) {
	n := newNode(t)
	n.must(t, "run", "-d", image, "sleep", "1000")
	conn, err := grpc.NewClient("unix://"+n.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := cri.NewRuntimeServiceClient(conn).PodSandboxStatus(t.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: "none"}); err == nil {
		t.Error("there is a pod")
	}
	if _, err := cri.NewImageServiceClient(conn).PullImage(t.Context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: "127.0.0.1:1/none"}}); err == nil {
		t.Error("there is an image")
	}

	web := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", n.Socket)
	}}}
	defer web.CloseIdleConnections()
	answer, err := web.Get("http://berth/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"berth_pods", "berth_container_memory_bytes", "berth_cri_operations_errors_total", "berth_image_pulls_failures_total"} {
		if !strings.Contains(string(text), "\n"+name+"{") {
			t.Errorf("no metric %s", name)
		}
	}
	problems, err := promlint.New(bytes.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}
